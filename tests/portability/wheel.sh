#!/usr/bin/env bash
# The wheel, installed outside a checkout: what needs no torch runs on the base dependencies alone,
# and with a torch that is there already the demo runs too.
#
#   tests/portability/wheel.sh                    builds, installs, runs, prints seconds
#   tests/portability/wheel.sh --train FOLDER     the same with libraries of FOLDER (site-packages),
#                                                 and the demo; KEY=VALUE after it changes its recipe
set -euo pipefail
cd "$(dirname "$0")/../.."
LIBRARIES=""
CHANGES=()
if [ "${1:-}" = --train ]; then
  LIBRARIES="$2"
  CHANGES=("${@:3}")
fi

PLACE="$(mktemp -d)"
trap 'rm -rf "$PLACE"' EXIT INT TERM
PYTHON="${PYTHON:-python3}"
"$PYTHON" -m pip wheel --quiet --no-deps -w "$PLACE" .
"$PYTHON" -m venv "$PLACE/env"
if [ -n "$LIBRARIES" ]; then
  "$PLACE/env/bin/python" -m pip install --quiet --no-deps "$PLACE"/*.whl
  # After the wheel's own: what it finds of itself is what was installed.
  echo "$LIBRARIES" > "$("$PLACE/env/bin/python" -c 'import site; print(site.getsitepackages()[0])')/zz.pth"
else
  "$PLACE/env/bin/python" -m pip install --quiet -c constraints.txt "$PLACE"/*.whl
fi
cd "$PLACE"
unset PYTHONPATH
export XDG_CACHE_HOME="$PLACE/cache" OMP_NUM_THREADS=1

timed() {
  local started ended code=0
  started=$(date +%s.%N)
  "$PLACE/env/bin/gptoss-tune" "$@" > "$PLACE/out" 2>&1 || code=$?
  ended=$(date +%s.%N)
  printf '%6.1f s  exit %d  gptoss-tune %s\n' "$(echo "$ended - $started" | bc)" "$code" "$*"
  [ "$code" -eq "$EXPECTED" ] || { cat "$PLACE/out"; exit 1; }
}

RECIPES="$("$PLACE/env/bin/python" -c 'from gptoss_tune.shipped import shipped; print(shipped("recipes"))')"
DATA="$("$PLACE/env/bin/python" -c 'from gptoss_tune.shipped import shipped; print(shipped("data"))')"
case "$RECIPES" in "$PLACE"/*) ;; *) echo "the recipes are those of $RECIPES"; exit 1 ;; esac
WORDS=("$RECIPES/gpt-oss-20b/qlora.yaml" "data.train=$DATA/tiny/train.jsonl" data.eval=null train.eval_steps=null)

EXPECTED=0
timed --version
timed recipes
timed check "${WORDS[@]}"
timed plan "${WORDS[@]}" --gpu h100-80gb
timed preview "${WORDS[@]}"
timed check-data "${WORDS[@]}"
timed launch "${WORDS[@]}" --slurm
if [ -n "$LIBRARIES" ]; then
  timed demo "${CHANGES[@]}"
else
  EXPECTED=3
  timed train "${WORDS[@]}"
  grep -q "needs the extra 'train'" "$PLACE/out"
  timed demo
fi
