#!/usr/bin/env bash
# Runs the whole of STAIR in miniature: bash launch/demo.sh [FLAGS of stair_jax.main]
# Run again, it goes on where it stopped.
set -eu
source "$(dirname "$0")/setup.sh"
exec .venv/bin/python -m stair_jax.main --config=configs/tiny.py "$@"
