#!/usr/bin/env bash
# Which versions this runs with: environments are made one after the other in a temporary folder, the
# quick half of the tests runs in each, a table says what passed, and nothing is left.
#
#   tests/versions.sh                          all: lowest, tested and newest on Python 3.11, 3.12, 3.13
#   tests/versions.sh --set newest --python 3.13
#   tests/versions.sh --set newest --torch 2.13.0    a torch that is at hand as a CPU build
#   tests/versions.sh --tests "tests/recipe tests/plan"
#   tests/versions.sh --list                   what would be made
#
# lowest: the lower ends of the ranges in pyproject.toml; tested: constraints.txt; newest: what the
# registry gives today within the ranges. A torch with CUDA takes about 8 GB of disk.
set -uo pipefail
cd "$(dirname "$0")/.."

SETS="lowest tested newest" PYTHONS="3.11 3.12 3.13" TORCH="" TESTS="tests" LIST=""
while [ $# -gt 0 ]; do
  case "$1" in
    --set) SETS="$2"; shift 2 ;;
    --python) PYTHONS="$2"; shift 2 ;;
    --torch) TORCH="$2"; shift 2 ;;
    --tests) TESTS="$2"; shift 2 ;;
    --list) LIST=1; shift ;;
    *) sed -n '2,13p' "$0" >&2; exit 2 ;;
  esac
done

PLACE="$(mktemp -d)"
trap 'rm -rf "$PLACE"' EXIT INT TERM
export PIP_CACHE_DIR="$PLACE/cache"

# Constraints of a set: the lower ends as `name==version`, the tested set as it is, or none.
constraints() {
  case "$1" in
    tested) grep -v '^#' constraints.txt ;;
    lowest) "$2" tests/lowest_versions.py pyproject.toml ;;
  esac | { if [ -n "$TORCH" ]; then grep -vE '^(torch|triton)=='; echo "torch==$TORCH"; else cat; fi; }
}

# A Python by its version: pyenv has a command of that name even where it runs none.
interpreter() {
  for found in "$(command -v "python$1")" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if [ -x "$found" ] && "$found" -c '' 2>/dev/null; then echo "$found"; return; fi
  done
}

table=()
failed=0
for python in $PYTHONS; do
  runner="$(interpreter "$python")"
  for set in $SETS; do
    name="$set, Python $python"
    if [ -z "$runner" ]; then table+=("$name | no such Python here"); continue; fi
    constraints "$set" "$runner" > "$PLACE/constraints.txt"
    if [ -n "$LIST" ]; then
      echo "$name: $(wc -l < "$PLACE/constraints.txt") constraints"
      [ "$set" != lowest ] || paste -sd' ' "$PLACE/constraints.txt"
      continue
    fi
    echo "== $name"
    started=$SECONDS
    if ! { "$runner" -m venv "$PLACE/env" \
        && "$PLACE/env/bin/python" -m pip install --quiet -c "$PLACE/constraints.txt" -e ".[dev]"; } \
        > "$PLACE/install.log" 2>&1; then
      tail -5 "$PLACE/install.log"
      table+=("$name | not installable: $(grep -m1 -oE 'conflict.*|No matching.*|ERROR: .*' "$PLACE/install.log")")
      failed=1
    else
      versions="$("$PLACE/env/bin/python" -m pip list --format=freeze 2>/dev/null \
        | grep -E '^(torch|transformers|trl|peft|huggingface_hub|datasets|triton|pydantic|numpy)==' | paste -sd' ')"
      # Through a pipe: tests that bound the size of files would bound this one.
      OMP_NUM_THREADS=1 "$PLACE/env/bin/python" -m pytest -q -p no:cacheprovider -m "not slow" $TESTS 2>&1 \
        | cat > "$PLACE/tests.log"
      [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
      grep -aE '^(FAILED|ERROR)' "$PLACE/tests.log"
      table+=("$name | $(grep -aE '(passed|failed|error).* in ' "$PLACE/tests.log" | tail -1) | $versions | $((SECONDS - started)) s")
    fi
    rm -rf "$PLACE/env"
  done
done
echo
[ -n "$LIST" ] || printf '%s\n' "set | tests | versions | time" "${table[@]}"
exit $failed
