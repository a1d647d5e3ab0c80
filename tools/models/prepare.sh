#!/usr/bin/env bash
# Prepares what the benchmarks and the examples need, from files that tools/fetch has put into .deps: the peers' Python
# environment (.deps/venv-peers), EfficientNet-lite0 and BERT-base as ONNX, the image sets; the environment that trains
# the small CLIP model (.deps/venv-clip), and that model. Every wheel is pinned by hash. Arguments name some of them
# (bert efficientnet resnet50 stamps clip clip-random), without any those that the benchmarks read are made. Idempotent:
# each step is skipped when its result is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
trap 'echo "prepare: stopped; what is done is kept, the same command goes on" >&2; exit 130' INT TERM
environment() { # VENV REQUIREMENTS WHAT: makes VENV unless it was made of these
  local want
  want=$(sha256sum "$2" | cut -d' ' -f1)
  if [ "$(cat "$1/requirements.sha256" 2>/dev/null || true)" != "$want" ]; then
    echo "prepare: installing $3 into $1 (Python 3.11 or newer)" >&2
    rm -rf "$1"
    "$PYTHON" -m venv "$1" || { echo "prepare: error: $PYTHON cannot make a virtual environment; install python3-venv" >&2; exit 1; }
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r "$2"
    echo "$want" >"$1/requirements.sha256"
  fi
}
peers() { environment .deps/venv-peers benchmarks/requirements.txt "the peers"; }
script() { # VENV SCRIPT [ARGUMENT]: Ctrl-C ends it at once, without a traceback
  "$1/bin/python" -B -c 'import runpy, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); del sys.argv[0]; sys.path[0] = "tools/models"; runpy.run_path(sys.argv[0], run_name="__main__")' "${@:2}"
}
make_once() { # RESULT SCRIPT: runs SCRIPT unless RESULT is newer than it
  peers
  [ "$1" -nt "$2" ] || script .deps/venv-peers "$2"
}
clip() { # the script that trains says what made the weights: a checkout that touches files trains nothing anew
  local of=.deps/models/clip-fashion/trained-by want
  want=$(cat tools/models/clip_train.py tools/models/clip_text.py | sha256sum | cut -d' ' -f1)
  if [ "$(cat $of 2>/dev/null || true)" != "$want" ]; then
    echo "prepare: training a small CLIP model on 55,000 images: 5 minutes of 2 cores, once; Ctrl-C loses one epoch at most" >&2
    # With glibc's usual limits each step gives its large arrays back to the kernel: twice the time.
    MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 .deps/venv-clip/bin/python -B tools/models/clip_train.py
    rm -f .deps/models/clip-fashion/model.onnx
    echo "$want" >$of
  fi
  [ .deps/models/clip-fashion/model.onnx -nt tools/models/clip.py ] || script .deps/venv-clip tools/models/clip.py
}
for what in ${*:-bert efficientnet stamps}; do
  case $what in
    efficientnet) make_once .deps/models/efficientnet-lite0/model.onnx tools/models/efficientnet.py ;;
    bert) make_once .deps/models/bert-base/model.onnx tools/models/bert.py ;;
    resnet50) make_once .deps/models/resnet50-random/model.onnx tools/models/resnet50.py ;;
    stamps) make_once .deps/data/stamps/labelled.npz tools/models/stamps.py ;;
    clip | clip-random)
      environment .deps/venv-clip tools/models/clip.txt "JAX"
      if [ "$what" = clip ]; then
        clip
      else
        [ .deps/models/clip-vit-b32-random/model.onnx -nt tools/models/clip.py ] || script .deps/venv-clip tools/models/clip.py --random
      fi ;;
    *) echo "prepare: error: unknown $what; one of bert, efficientnet, resnet50, stamps, clip, clip-random" >&2; exit 1 ;;
  esac
done
