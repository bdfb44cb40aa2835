#!/usr/bin/env bash
#SBATCH --job-name=stair --nodes=1 --gpus-per-node=8 --cpus-per-task=64 --requeue --open-mode=append
# B: the signal goes to this script; without it, to job steps alone, and there is none.
#SBATCH --signal=B:TERM@300
# A run on one host with 8 GPUs: sbatch launch/slurm.sh --config=configs/llama8b.py --config.workdir=DIR ...
# Before its time limit, or when it is preempted, it saves, goes back into the queue, and goes on where it stopped.
set -eu
cd "${SLURM_SUBMIT_DIR:-.}"
EXTRAS=${EXTRAS-cuda12}
source launch/setup.sh
stopped=''
.venv/bin/python -m stair_jax.main "$@" &
run=$!
trap 'stopped=yes; kill -TERM "$run" || true' TERM
status=0
wait "$run" || status=$?
if [ "$stopped" ]; then # that wait ended with the signal, not with the run
  status=0
  wait "$run" || status=$?
  # --requeue is for lost nodes and preemption: a job at its time limit would be over.
  [ "$status" = 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
