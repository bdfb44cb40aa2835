#!/usr/bin/env bash
# Shows launch/slurm.sh on a SLURM of one node that it starts here, in some ten minutes:
#   bash launch/check_slurm.sh          (as root, with Debian's slurm-wlm and munge installed)
# The miniature's first stage meets its time limit, saves, is requeued and goes on; exit 1 where it does not.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'pkill -F "$work/slurmd.pid" || true; pkill -F "$work/slurmctld.pid" || true; pkill -F "$work/munged.pid" || true
sleep 2; rm -rf "$work" || true' EXIT
mkdir -p "$work/state" "$work/spool"
dd if=/dev/urandom of="$work/munge.key" bs=32 count=1 status=none
chmod 400 "$work/munge.key"
cat > "$work/slurm.conf" <<CONF
ClusterName=check
SlurmctldHost=$(hostname -s)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
ReturnToService=2
KillWait=30
NodeName=$(hostname -s) CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf
chmod 755 "$work"
munged --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
  --log-file="$work/munged.log" --seed-file="$work/munged.seed"
slurmctld
slurmd
out=$work/job.log
export EXTRAS=${EXTRAS-test}
job=$(sbatch --parsable --output="$out" --gpus-per-node=0 --cpus-per-task=2 --time=2 --signal=B:TERM@60 \
  launch/slurm.sh --config=configs/tiny.py:smoke --config.sft.train.epochs=6.0 --config.workdir="$work/run" --config.stages=sft)
for _ in $(seq 180); do
  state=$(scontrol --oneliner show job "$job" | grep -o 'JobState=[A-Z_]*')
  case $state in JobState=COMPLETED | JobState=FAILED | JobState=TIMEOUT | JobState=CANCELLED) break ;; esac
  # A requeued job waits two minutes by default; here it need not.
  scontrol update JobId="$job" StartTime=now 2> /dev/null || true
  sleep 5
done
restarts=$(scontrol --oneliner show job "$job" | grep -o 'Restarts=[0-9]*')
cat "$out"
echo "$state $restarts"
grep -q "is saved; the same command goes on from here" "$out"
[ "$state" = JobState=COMPLETED ] && [ "$restarts" != Restarts=0 ]
