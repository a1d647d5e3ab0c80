#!/usr/bin/env bash
# Runs every fuzz target of the module for FUZZTIME each, one after the other; new inputs that fail are kept by go
# under the package's testdata/fuzz. FUZZ selects targets by a regular expression.
set -euo pipefail
GO=${GO:-go} FUZZTIME=${FUZZTIME:-10m} FUZZ=${FUZZ:-.}
failed=0
while read -r pkg target; do
  [[ $target =~ $FUZZ ]] || continue
  echo "== $pkg $target for $FUZZTIME"
  "$GO" test -run '^$' -fuzz "^${target}\$" -fuzztime "$FUZZTIME" -fuzzminimizetime 5s "$pkg" </dev/null || { failed=1; echo "FAIL $pkg $target"; }
done < <("$GO" list -f '{{$d := .Dir}}{{$p := .ImportPath}}{{range .TestGoFiles}}{{$p}} {{$d}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$p}} {{$d}}/{{.}}{{"\n"}}{{end}}' ./... |
  while read -r pkg file; do
    [ -n "$pkg" ] || continue
    sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$file" | while read -r t; do echo "$pkg $t"; done
  done)
exit $failed
