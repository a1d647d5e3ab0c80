#!/usr/bin/env bash
# Runs what `fewbit tflite` writes in LiteRT, TensorFlow Lite's interpreter, beside ONNX Runtime: small graphs of every
# operator that has a form, and the real classifier where it has been fetched (make example-image).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
venv=$(readlink -f .deps)/venv-litert # the same that benchmarks/litert.py makes
want="$(sha256sum tests/litert/requirements.txt | cut -d' ' -f1) $venv"
if [ "$(cat "$venv/requirements.sha256" 2>/dev/null || true)" != "$want" ]; then
  echo "litert: installing (CPython 3.11 or newer, x86-64)" >&2
  rm -rf "$venv"
  "$PYTHON" -m venv "$venv" || { echo "litert: error: $PYTHON cannot make a virtual environment; install python3-venv" >&2; exit 1; }
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: --no-deps -r tests/litert/requirements.txt
  printf %s "$want" >"$venv/requirements.sha256"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
real=()
for pair in efficientnet-lite0:eval resnet50-random:calib; do
  model=.deps/models/${pair%:*}/model.onnx samples=.deps/data/stamps/${pair#*:}.npz
  if [ -e "$model" ] && [ -e "$samples" ]; then real+=("$model" "$samples"); else echo "litert: skipped: $model or $samples is not there (make example-image)" >&2; fi
done
"$venv/bin/python" -B tests/litert/litert.py bin/fewbit "$work" ${real[@]+"${real[@]}"} 2>"$work/errors" | grep litert || { grep -v 'XNNPACK\|WARNING' "$work/errors" >&2; exit 1; }
