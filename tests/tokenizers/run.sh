#!/usr/bin/env bash
# Compares the WordPiece tokenizer with Hugging Face `tokenizers` on more than 100,000 lines of real text in over a
# hundred languages and on 20,000 lines of random Unicode: three vocabularies, every id.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
GO=${GO:-go}
venv=.deps/venv-tokenizers
want=$(sha256sum tests/tokenizers/requirements.txt | cut -d' ' -f1)
if [ "$(cat "$venv/requirements.sha256" 2>/dev/null || true)" != "$want" ]; then
  echo "tokenizers: installing into $venv (CPython 3.10 or newer, x86-64)" >&2
  rm -rf "$venv"
  "$PYTHON" -m venv "$venv" || { echo "tokenizers: error: $PYTHON cannot make a virtual environment; install python3-venv" >&2; exit 1; }
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: --no-deps -r tests/tokenizers/requirements.txt
  echo "$want" >"$venv/requirements.sha256"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tokenizer=$PWD/.deps/models/minilm-fused/tokenizer.json
"$venv/bin/python" -B tests/tokenizers/corpus.py "$tokenizer" "$work/golden.json.gz"
"$GO" test ./internal/task/wordpiece -count=1 -run 'TestGolden$' -v -golden "$work/golden.json.gz" -tokenizer "$tokenizer" >"$work/out" || { cat "$work/out"; exit 1; }
grep 'compared' "$work/out"
