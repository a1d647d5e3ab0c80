#!/usr/bin/env bash
# The Go benchmarks of this tree against those of another commit, in turn, compared by benchstat.
#   benchmarks/micro.sh [BASE [PACKAGE ...]]     BASE: any commit, default origin/main, else the commit before
# COUNT (6) rounds of BENCHTIME (0.2s) each; BENCH (.) chooses by name. What was measured is kept in build/micro.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go} COUNT=${COUNT:-6} BENCHTIME=${BENCHTIME:-0.2s} BENCH=${BENCH:-.}
BENCHSTAT=golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
fail() { echo "micro: error: $*" >&2; exit 1; }
base=${1:-$(git rev-parse -q --verify origin/main || echo HEAD~1)}
commit=$(git rev-parse -q --verify "$base^{commit}") || fail "$base is no commit; name a branch, a tag or a hash"
shift || true
packages=("$@")
[ ${#packages[@]} -gt 0 ] || mapfile -t packages < <(git grep -l '^func Benchmark' -- 'internal/*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|./|')
work=$(mktemp -d)
trap 'git worktree remove --force "$work/base" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
git worktree add --quiet --detach "$work/base" "$commit"
[ ! -e .deps ] || ln -s "$PWD/.deps" "$work/base/.deps"
[ ! -e bin ] || ln -s "$PWD/bin" "$work/base/bin"
out=build/micro
mkdir -p "$out"
: > "$out/base.txt"
: > "$out/new.txt"
for p in "${packages[@]}"; do
  [ -d "$p" ] || fail "there is no package $p"
  name=${p//[.\/]/_}
  echo "micro: building $p" >&2
  "$GO" test -c -o "$work/$name.new" "$p"
  # A package that the base does not have, or that does not build there, is measured without it.
  (cd "$work/base" && "$GO" test -c -o "$work/$name.base" "$p") || echo "micro: $p does not build at $base: measured for this tree only" >&2
done
for round in $(seq "$COUNT"); do
  for p in "${packages[@]}"; do
    name=${p//[.\/]/_}
    echo "micro: round $round of $COUNT: $p" >&2
    for side in base new; do
      [ -x "$work/$name.$side" ] || continue
      tree=$PWD; [ $side = new ] || tree=$work/base
      (cd "$tree/$p" && "$work/$name.$side" -test.run '^$' -test.bench "$BENCH" -test.benchmem -test.benchtime "$BENCHTIME") >> "$out/$side.txt"
    done
  done
done
"$GO" run "$BENCHSTAT" "base=$out/base.txt" "new=$out/new.txt" | tee "$out/benchstat.txt"
