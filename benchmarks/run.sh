#!/usr/bin/env bash
# Runs every benchmark of the README's table and writes it anew. Argument: quick (default) or full, the counts that the
# claims rest on. ONLY="bert_speed news" runs some of them. See benchmarks/README.md for what each one measures.
set -euo pipefail
cd "$(dirname "$0")/.."
export FEWBIT_BENCH=${1:-quick} PYTHONPATH=benchmarks PYTHONDONTWRITEBYTECODE=1
failed=0
trap 'echo "bench: stopped; results that were written are kept" >&2; exit 130' INT TERM
[ -x .deps/venv-peers/bin/python ] || { echo "bench: error: .deps/venv-peers is not there; run make deps-bench, which make bench does" >&2; exit 1; }
[ -x bin/fewbit ] && [ -x bin/serve ] || { echo "bench: error: bin/fewbit or bin/serve is not there; run make build, which make bench does" >&2; exit 1; }
for name in ${ONLY:-bert_speed calibration calibration_memory fidelity accuracy classifiers tokens int4 quantizers vision litert fashion news search kernels native_cpu levels_cpu int4_cpu openvino_cpu profile_cpu padding_cpu towers_cpu overhead load loadgen servers servers_bert}; do
  echo "== $name ($FEWBIT_BENCH)" >&2
  if [ "$name" = overhead ] || [ "$name" = load ]; then
    ${GO:-go} run "./benchmarks/$name" || { failed=1; echo "bench: $name failed" >&2; }
  elif [ "$name" = servers_bert ]; then
    .deps/venv-peers/bin/python benchmarks/servers.py bert || { failed=1; echo "bench: $name failed" >&2; }
  elif [ "$name" = calibration_memory ]; then
    .deps/venv-peers/bin/python benchmarks/calibration.py memory || { failed=1; echo "bench: $name failed" >&2; }
  elif [ "$name" = loadgen ]; then
    .deps/venv-peers/bin/python benchmarks/loadgen/driver.py || { failed=1; echo "bench: $name failed" >&2; }
  else
    .deps/venv-peers/bin/python "benchmarks/$name.py" || { failed=1; echo "bench: $name failed" >&2; }
  fi
done
${PYTHON:-python3} tools/benchtable/benchtable.py
${GO:-go} test ./tools/doccheck -update >/dev/null || true # the other places in docs/ that quote results
exit $failed
