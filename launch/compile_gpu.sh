#!/usr/bin/env bash
# Compiles the kernels, the engine's programs and the trainers' steps at 8B for GPUs that are not there, in
# .venv-cuda (6 GB):
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
status=0
for program in compile_gpu compile_training; do
  .venv-cuda/bin/python -m "tests.$program" "$@" || status=$?
done
exit $status
