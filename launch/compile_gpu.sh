#!/usr/bin/env bash
# Compiles the kernels, the engine's programs and the trainers' steps at 8B for GPUs that are not there, in
# .venv-cuda (6 GB), and exits 1 where one fails or its text shows what it must not:
#   bash launch/compile_gpu.sh [WORD ...]      (only targets and programs with one of the words in their names)
# PYTHON chooses the interpreter, and with it JAX and CUDA: from 3.12 on JAX 0.11 or 0.12 with CUDA 13, on 3.11
# JAX 0.10 with CUDA 12. A different interpreter gets its environment anew.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
cuda=$("$python" -c 'import sys; print("cuda13" if sys.version_info >= (3, 12) else "cuda12")')
stamp=".venv-cuda/.installed-$(sha256sum pyproject.toml | cut -c1-16)-$cuda"
if [ ! -e "$stamp" ]; then
  "$python" -m venv --clear .venv-cuda
  echo "installing into .venv-cuda (minutes, once) ..."
  .venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$cuda]"
  touch "$stamp"
fi
status=0
for program in engine training; do
  .venv-cuda/bin/python -m "stair_jax.plan.$program" "$@" || status=1
done
exit $status
