#!/usr/bin/env bash
# Runs the whole of STAIR in miniature: bash launch/demo.sh [FLAGS of stair_jax.main]
# Run again, it goes on where it stopped.
set -eu
source "$(dirname "$0")/setup.sh"
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 # large pages: a CPU training step is a seventh faster
exec .venv/bin/python -m stair_jax.main --config=configs/tiny.py "$@"
