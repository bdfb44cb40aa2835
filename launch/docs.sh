#!/usr/bin/env bash
# Builds the pages into site/, where every warning is an error: bash launch/docs.sh
# Shows them while they are written, at http://127.0.0.1:8000: bash launch/docs.sh serve
set -eu
EXTRAS=docs
source "$(dirname "$0")/setup.sh"
exec .venv/bin/python -m mkdocs "${1:-build}" --strict "${@:2}"
