#!/usr/bin/env bash
# The first field scenario, from a clean clone to figures: fetches EfficientNet-lite0 and the images, makes ResNet-50's
# graph, builds, and runs examples/image-classification. Finished steps are kept: after Ctrl-C the same command goes on.
# Arguments go to the program (--help lists them); FULL=1 takes the counts that claims rest on and keeps the result.
set -euo pipefail
cd "$(dirname "$0")/../.."
. examples/prelude.sh
if [ ! -e .deps/models/resnet50-random/model.onnx ] || [ ! -e .deps/data/stamps/labelled.npz ]; then
  # The stamps take 161 MB packed, 190 unpacked and 440 as arrays, the Python environment 620.
  free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1000) }')
  [ "$free" -ge 2500 ] || fail "$free MB are free here, 2500 are needed; free some and run again"
  [ -e .deps/raw/stamps/README ] || command -v apt-get >/dev/null || fail "apt-get is not installed; the photos are a Debian package and are fetched with it"
fi
step "fetching ONNX Runtime, EfficientNet-lite0 and the photos (what is there is kept)"
"$PYTHON" tools/fetch/fetch.py example-image
tools/models/prepare.sh efficientnet resnet50 stamps
step "building"
make GO="$GO" build >/dev/null
mkdir -p build && "$GO" build -o build/image-classification ./examples/image-classification
keep=()
[ -z "${FULL:-}" ] || keep=(-full -result benchmarks/results/example_image.json -page examples/image-classification/README.md)
exec build/image-classification "${keep[@]}" "$@"
