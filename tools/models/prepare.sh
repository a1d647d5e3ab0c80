#!/usr/bin/env bash
# Prepares what the benchmarks and the examples need, from files that tools/fetch has put into .deps/raw: the peers'
# Python environment (.deps/venv-peers, every wheel pinned by hash), EfficientNet-lite0 and BERT-base as ONNX, the image
# sets. Arguments name some of them (bert efficientnet resnet50 stamps), without any all but resnet50 are made, which
# only an example uses. Idempotent: each step is skipped when its result is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
venv=.deps/venv-peers
want=$(sha256sum benchmarks/requirements.txt | cut -d' ' -f1)
if [ "$(cat "$venv/requirements.sha256" 2>/dev/null || true)" != "$want" ]; then
  echo "prepare: installing the peers into $venv (Python 3.11 or newer)" >&2
  rm -rf "$venv"
  "$PYTHON" -m venv "$venv" || { echo "prepare: error: $PYTHON cannot make a virtual environment; install python3-venv" >&2; exit 1; }
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r benchmarks/requirements.txt
  echo "$want" >"$venv/requirements.sha256"
fi
make_once() { # RESULT SCRIPT: runs SCRIPT unless RESULT is newer than it
  [ "$1" -nt "$2" ] || "$venv/bin/python" "$2"
}
for what in ${*:-bert efficientnet stamps}; do
  case $what in
    efficientnet) make_once .deps/models/efficientnet-lite0/model.onnx tools/models/efficientnet.py ;;
    bert) make_once .deps/models/bert-base/model.onnx tools/models/bert.py ;;
    resnet50) make_once .deps/models/resnet50-random/model.onnx tools/models/resnet50.py ;;
    stamps) make_once .deps/data/stamps/labelled.npz tools/models/stamps.py ;;
    *) echo "prepare: error: unknown $what; one of bert, efficientnet, resnet50, stamps" >&2; exit 1 ;;
  esac
done
