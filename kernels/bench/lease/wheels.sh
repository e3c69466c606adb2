#!/bin/bash
# Download into .whl what a bare GPU machine lacks: bash kernels/bench/lease/wheels.sh [3.12]
set -eu
cd "$(dirname "$0")/../../.."
mkdir -p .whl
PLATFORMS="manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64"
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
    --python-version "${1:-3.12}" $(printf -- '--platform %s ' $PLATFORMS) \
    -d .whl -r kernels/bench/lease/wheels.txt
du -sh .whl
