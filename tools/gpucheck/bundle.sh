#!/usr/bin/env bash
# Packs what `make gpu-check` runs on a machine with a GPU: everything built, nothing
# to install, at most 60 MB. Run after `make cuda`.
#
#   tools/gpucheck/bundle.sh build/gpu-check.tar.xz
#   tar xf gpu-check.tar.xz && gpu-check/run.sh result.json       (over there)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
archive=${1:-build/gpu-check.tar.xz}
limit=$((60 * 1000 * 1000))
to=build/gpu-check
module=$(${GO:-go} list -m)

rm -rf "$to"
mkdir -p "$to/bin" "$to/lib" "$to/tests"
export FEWBIT_LDFLAGS='-s -w'
tools/cuda/go.sh real build -o "$to/bin/" ./cmd/fewbit
tools/cuda/go.sh real build -o "$to/gpucheck" ./tools/gpucheck
for package in $(tools/cuda/go.sh real list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./cuda/... ./internal/engine/cuda/...); do
  path=${package#"$module"/}
  mkdir -p "$to/tests/$path"
  tools/cuda/go.sh real test -c -o "$to/tests/$path/pkg.test" "./$path"
  if [ -d "$path/testdata" ]; then cp -r "$path/testdata" "$to/tests/$path/"; fi
done
library=${FEWBIT_ORT_LIB:-$(ls -d "${FEWBIT_DEPS:-.deps}"/ort-*/libonnxruntime.so.* | tail -1)}
cp "$library" "$to/lib/"
cp tools/gpucheck/peers.py "$to/"
cat > "$to/run.sh" <<'RUN'
#!/usr/bin/env bash
# run.sh [RESULT.json] [gpucheck flags]: checks fewbit on this machine's GPU, within nine minutes and without network.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(realpath -m "${1:-gpu-check.json}")
exec "$here/gpucheck" -dir "$here" -out "$out" "${@:2}"
RUN
chmod +x "$to/run.sh"
# Every program holds the kernels again: a dictionary that spans them all makes a third of what gzip makes.
tar --sort=name --owner=0 --group=0 --numeric-owner -C build -cf - gpu-check | ${PYTHON:-python3} -c '
import lzma, shutil, sys
filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 256 << 20}]
with lzma.open(sys.argv[1], "wb", filters=filters) as out:
    shutil.copyfileobj(sys.stdin.buffer, out, 1 << 20)
' "$archive"
bytes=$(stat -c %s "$archive")
echo "$archive: $bytes bytes"
[ "$bytes" -le "$limit" ] || { echo "bundle.sh: more than the $limit bytes that it may have" >&2; exit 1; }
