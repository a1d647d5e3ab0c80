#!/usr/bin/env bash
# Drives bin/serve with the clients that people bring: tritonclient over HTTP and gRPC, kserve, openai, grpcurl, curl.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
venv=.deps/venv-clients
want=$(sha256sum tests/clients/requirements.txt | cut -d' ' -f1)
if [ "$(cat "$venv/requirements.sha256" 2>/dev/null || true)" != "$want" ]; then
  echo "clients: installing into $venv (CPython 3.11, x86-64)" >&2
  rm -rf "$venv"
  "$PYTHON" -m venv "$venv" || { echo "clients: error: $PYTHON cannot make a virtual environment; install python3-venv" >&2; exit 1; }
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: --no-deps -r tests/clients/requirements.txt
  echo "$want" >"$venv/requirements.sha256"
fi
# grpcurl comes through the Go module proxy, checked against the checksum database.
grpcurl_version=v1.9.4
grpcurl=.deps/grpcurl-$grpcurl_version
if [ ! -x "$grpcurl" ]; then
  echo "clients: building grpcurl $grpcurl_version" >&2
  built=$(mktemp -d)
  GOBIN=$built GOFLAGS=-mod=mod "${GO:-go}" install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version"
  mv "$built/grpcurl" "$grpcurl" && rmdir "$built"
fi
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server"; } || true; rm -rf "$work"' EXIT
bin/serve --listen 127.0.0.1:0 --grpc-listen 127.0.0.1:0 --data-dir "$work/data" >"$work/out" 2>"$work/log" &
server=$!
for _ in $(seq 100); do
  grep -q 'serves on' "$work/out" && break
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
http=$(sed -n 's#.*http://\([^ ]*\).*#\1#p' "$work/out")
grpc=$(sed -n 's#.*grpc://\([^ ]*\).*#\1#p' "$work/out")
[ -n "$http" ] && [ -n "$grpc" ] || { echo "clients: error: the server did not start:" >&2; cat "$work/out" "$work/log" >&2; exit 1; }
(cd .deps/models/minilm-fused && "$PYTHON" -m zipfile -c "$work/minilm.zip" model.onnx model.onnx_data tokenizer.json)
curl -sSf -T "$work/minilm.zip" "http://$http/models/minilm" >/dev/null
"$venv/bin/python" tests/clients/clients.py "$http" "$grpc" "$grpcurl"
"$venv/bin/python" -W ignore tests/clients/kserve_client.py "$http" "$grpc"
