#!/usr/bin/env bash
# Lints, type-checks and runs the tests, but for those marked slow or gpu: bash launch/test.sh [PYTEST FLAGS]
# The slow ones: bash launch/test.sh -m slow. WORKERS=N runs N files side by side (default: one a core).
# Fuzzing draws the same examples each time; --hypothesis-seed=N draws others.
set -eu
EXTRAS=test
source "$(dirname "$0")/setup.sh"
PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
pyright
exec python -m pytest -n "${WORKERS:-auto}" --dist loadfile --no-loadscope-reorder --hypothesis-seed=0 "$@"
