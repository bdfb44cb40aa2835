#!/usr/bin/env bash
# Runs the whole of STAIR in miniature: bash launch/demo.sh [FLAGS of stair_jax.main]
# Run again, it goes on where it stopped.
set -eu
source "$(dirname "$0")/setup.sh"
# Large pages, and memory that is kept between steps: a CPU training step is a quarter faster.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456
exec .venv/bin/python -m stair_jax.main --config=configs/tiny.py "$@"
