#!/usr/bin/env bash
#SBATCH --job-name=stair --nodes=1 --gpus-per-node=8 --cpus-per-task=64 --signal=TERM@120 --requeue
# A run on one host with 8 GPUs: sbatch launch/slurm.sh --config=configs/llama8b.py --config.workdir=DIR ...
# Requeued, it goes on where it stopped.
set -eu
cd "${SLURM_SUBMIT_DIR:-.}"
EXTRAS=cuda12
source launch/setup.sh
exec .venv/bin/python -m stair_jax.main "$@"
