#!/usr/bin/env bash
# The third field scenario, from a clean clone to figures: fetches Fashion-MNIST and CLIP's vocabulary, trains a small
# CLIP model (6 minutes of 2 cores, once), builds, and runs examples/vision-language. Finished steps are kept: after
# Ctrl-C the same command goes on. Arguments go to the program (--help lists them); FULL=1 takes the counts that claims
# rest on, adds CLIP ViT-B/32 with random weights for its size and speed, and keeps the result.
set -euo pipefail
cd "$(dirname "$0")/../.."
. examples/prelude.sh
need=0
# The Python environment that trains takes 660 MB and what pip needs to install it 250, the data 60, the models 50.
[ -e .deps/models/clip-fashion/model.onnx ] || need=$((need + 1200))
# ViT-B/32: FP32, INT8 and room to write them.
[ -z "${FULL:-}" ] || need=$((need + 2500))
free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1000) }')
[ "$free" -ge $need ] || fail "$free MB are free here, $need are needed; free some and run again"
if [ ! -e .deps/data/fashion-mnist/t10k-images-idx3-ubyte.gz ]; then
  for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || fail "$tool is not installed; Fashion-MNIST is a Debian package and is fetched and unpacked with it"
  done
fi
step "fetching ONNX Runtime, Fashion-MNIST and CLIP's vocabulary (what is there is kept)"
"$PYTHON" tools/fetch/fetch.py example-drone
step "preparing the CLIP model (what is there is kept)"
PYTHON="$PYTHON" tools/models/prepare.sh clip
step "building"
make GO="$GO" build >/dev/null
mkdir -p build && "$GO" build -o build/vision-language ./examples/vision-language
keep=()
if [ -n "${FULL:-}" ]; then
  step "writing CLIP ViT-B/32 with random weights (605 MB, kept)"
  PYTHON="$PYTHON" tools/models/prepare.sh clip-random
  keep=(-full -big .deps/models/clip-vit-b32-random/model.onnx -result benchmarks/results/example_drone.json -page examples/vision-language/README.md)
fi
exec build/vision-language "${keep[@]}" "$@"
