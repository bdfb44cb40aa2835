#!/usr/bin/env bash
# Compiles the kernels and the engine's programs for A100 and H200 without a GPU, in .venv-cuda (6 GB):
#   bash launch/compile_gpu.sh [WORD ...]      (only programs with one of the words in their names)
# PYTHON chooses the interpreter (3.11 or 3.12), and with it how new a JAX there is.
set -eu
cd "$(dirname "$0")/.."
stamp=".venv-cuda/.installed-$(sha256sum pyproject.toml | cut -c1-16)"
if [ ! -e "$stamp" ]; then
  "${PYTHON:-python3}" -m venv .venv-cuda
  echo "installing into .venv-cuda (minutes, once) ..."
  .venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[cuda12]"
  touch "$stamp"
fi
exec .venv-cuda/bin/python -m tests.compile_gpu "$@"
