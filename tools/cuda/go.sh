#!/usr/bin/env bash
# The go command with what CUDA needs of cgo.
#
#   tools/cuda/go.sh emulated test ./cuda/... ./internal/engine/cuda/...
#   tools/cuda/go.sh real build -o bin/ ./cmd/...
#   tools/cuda/go.sh emulated exec COMMAND...      any command, in that environment
#
# emulated: kernels and driver of host memory (tags cuda,cudaemu); needs a C++
# compiler and one header, which the fetch set cuda-headers brings. real: the archive of
# kernels that `make cuda` made. Both put the folders of internal/engine/cuda/driver
# first, so that gorgonia.org/cu finds a libcuda that needs no driver.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
go=${GO:-go}
deps=${FEWBIT_DEPS:-$root/.deps}
driver=$root/internal/engine/cuda/driver
kind=${1:?emulated or real}
command=${2:?a go command}
shift 2

# What other modules leave of unused code and deprecated names is not ours to warn about.
base="${CGO_CFLAGS:--O2 -g} -Wno-deprecated-declarations"
case $kind in
emulated)
  header=$deps/cuda-headers
  [ -f "$header/cuda.h" ] || { echo "go.sh: $header/cuda.h is missing; run python3 tools/fetch/fetch.py cuda-headers" >&2; exit 1; }
  export CGO_CFLAGS="$base -I$driver/include -I$header"
  export CGO_LDFLAGS="${CGO_LDFLAGS:-} -L$driver/link"
  [ "$command" != exec ] || exec "$@"
  exec "$go" "$command" -tags cuda,cudaemu "$@"
  ;;
real)
  build=${FEWBIT_CUDA_BUILD:-$root/build/cuda}
  [ -f "$build/libfewbit_cuda.a" ] && [ -f "$build/toolkit.env" ] || { echo "go.sh: $build/libfewbit_cuda.a is missing; run make cuda" >&2; exit 1; }
  . "$build/toolkit.env"
  export CGO_CFLAGS="$base -I$driver/include -I$CUDA_INCLUDE"
  export CGO_LDFLAGS="${CGO_LDFLAGS:-} -L$driver/link -L$build -L$CUDA_LIBRARIES"
  # The go command does not look into archives: their hash among the linker's flags makes it link anew.
  kernels=$(sha256sum "$build/libfewbit_cuda.a" | cut -c1-16)
  ldflags="-X main.version=${FEWBIT_VERSION:-unknown} -X github.com/fewbit/fewbit/cuda.Kernels=$kernels ${FEWBIT_LDFLAGS:-}"
  case $command in
  exec) exec "$@" ;;
  build | test | run | install) exec "$go" "$command" -tags cuda -ldflags "$ldflags" "$@" ;;
  *) exec "$go" "$command" -tags cuda "$@" ;;
  esac
  ;;
*)
  echo "go.sh: $kind is neither emulated nor real" >&2
  exit 1
  ;;
esac
