#!/bin/bash
# All that a first GPU has to show, in at most 8 minutes, on a bare machine without a network:
#
#     bash kernels/bench/lease.sh [PART ...]        parts: see LIMITS below; default: all, in order
#
# Named parts add their lines to those that are there. A whole run begins a new lines.jsonl; the one
# before becomes lines-1.jsonl, and three such are kept. The exit code is 0 when every part that ran
# found nothing wrong or only ran out of time, else 1, and the last line names the others.
#
# Each part is a process with a limit: one that crashes or hangs loses itself alone. Each figure is a
# JSON line on the disk before the next one is measured. When `correct` is not green, what builds on
# the expert layer is not run: the time is for the repair. In the environment:
#
#     OUT         folder of the results (at most 8 files), relative to where you are; default
#                 kernels/bench/results/run of the repository
#     LIMIT       seconds for everything; default 480
#     PART_LIMIT  most seconds of one part; default: its own limit
#     PYTHON      default python3
#     DRY=1       a CPU, Triton's interpreter, tiny sizes: checks the scripts, measures nothing; ten
#                 times the time
#
# At the root of the repository, where present: .whl (wheels, lease/wheels.sh) and .tcache (compiled
# kernels, lease/precompile.py).
set -u
CALLER=$PWD
cd "$(dirname "$0")/../.." || exit 1
REPOSITORY=$PWD
export OUT=${OUT:-$REPOSITORY/kernels/bench/results/run} DRY=${DRY:-0}
[[ $OUT == /* ]] || OUT=$CALLER/$OUT
TIMES=1 && [ "$DRY" = 1 ] && TIMES=10
LIMIT=${LIMIT:-$((480 * TIMES))} PYTHON=${PYTHON:-python3}
PART_LIMIT=${PART_LIMIT:-$LIMIT}
RESERVE=5          # seconds for the end
LOG_BYTES=1500000  # of each part, so that the log stays small
declare -A LIMITS=([env]=30 [correct]=75 [tune]=70 [op]=80 [step20b]=85 [attention]=40 [loss]=25
                   [step120b]=80 [tests]=240)
ORDER="env correct tune op step20b attention loss step120b tests"
NEEDS_CORRECT=" tune op step20b step120b tests "
for name in "$@"; do
    [[ -v LIMITS[$name] ]] || { echo "no part $name; parts: $ORDER" >&2; exit 2; }
done
PARTS=${*:-$ORDER}

mkdir -p "$OUT" || exit 1
if [ $# = 0 ]; then
    for older in 2 1; do
        [ -f "$OUT/lines-$older.jsonl" ] && mv "$OUT/lines-$older.jsonl" "$OUT/lines-$((older + 1)).jsonl"
    done
    [ -f "$OUT/lines.jsonl" ] && mv "$OUT/lines.jsonl" "$OUT/lines-1.jsonl"
    rm -f "$OUT/log.txt" "$OUT/dmon.txt"
elif [ -s "$OUT/lines.jsonl" ] && [ -n "$(tail -c 1 "$OUT/lines.jsonl")" ]; then
    echo >> "$OUT/lines.jsonl"  # a kill cut the last line off
fi
WORK=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$WORK"' EXIT
trap 'exit 143' TERM INT

export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export PYTHONPATH=$REPOSITORY/src:$REPOSITORY/kernels${PYTHONPATH:+:$PYTHONPATH}
if [ "$DRY" = 1 ]; then
    export CUDA_VISIBLE_DEVICES=
else
    if compgen -G ".whl/*.whl" > /dev/null; then
        timeout -k 5 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
            --upgrade --target "$WORK/site" .whl/*.whl >> "$OUT/log.txt" 2>&1 ||
            echo "wheels not installed: see log.txt"
        export PYTHONPATH=$WORK/site:$PYTHONPATH
    fi
    export TRITON_CACHE_DIR=$WORK/cache
    [ -d .tcache ] && "$PYTHON" kernels/bench/lease/cache_key.py .tcache "$TRITON_CACHE_DIR"
    mkdir -p "$TRITON_CACHE_DIR"
    if command -v nvidia-smi > /dev/null; then
        nvidia-smi dmon -s pucm -d 5 -o T >> "$OUT/dmon.txt" 2>&1 &
    fi
fi

correct=0
bad=
for name in $PARTS; do
    left=$((LIMIT - SECONDS - RESERVE))
    if [[ $correct != 0 && $NEEDS_CORRECT == *" $name "* ]]; then
        echo "{\"part\": \"$name\", \"not_run\": \"correct ended with $correct\"}" >> "$OUT/lines.jsonl"
        echo "## $name: not run, correct ended with $correct"
        continue
    fi
    if [ $left -lt 5 ]; then
        echo "{\"part\": \"$name\", \"not_run\": \"no time left\"}" >> "$OUT/lines.jsonl"
        echo "## $name: not run, no time left"
        continue
    fi
    limit=$((LIMITS[$name] * TIMES))
    [ "$PART_LIMIT" -lt "$limit" ] && limit=$PART_LIMIT
    [ $left -lt "$limit" ] && limit=$left
    started=$SECONDS
    echo "## $name" >> "$OUT/log.txt"
    # A child of this script, not of timeout, which makes a process group of its own: where the
    # script's group has no terminal, an end across two groups would hang up whoever is stopped.
    exec 3> >(head -c $LOG_BYTES >> "$OUT/log.txt"; cat > /dev/null)
    # In the background: a signal to this script is answered at once.
    timeout -k 3 "$limit" "$PYTHON" kernels/bench/lease/part.py "$name" >&3 2>&1 3>&- &
    exec 3>&-
    wait $!
    code=$?
    [ "$name" = correct ] && correct=$code
    [ $code != 0 ] && [ $code != 124 ] && bad+=" $name ($code)"
    if [ $code != 0 ]; then  # lines start anew: a killed part may have left half of one
        printf '\n{"part": "%s", "exit_code": %d, "limit_s": %d}\n' "$name" $code "$limit" \
            >> "$OUT/lines.jsonl"
    fi
    echo "## $name: exit code $code after $((SECONDS - started)) s (124: over its $limit s; at $SECONDS s)"
done
if [ "$correct" != 0 ] || [ -n "$bad" ]; then
    echo "## not right, exit code in brackets (1: crashed, 3: wrong, 126 or 127: not started):" \
        "${bad:- correct ($correct)}"
    exit 1
fi
