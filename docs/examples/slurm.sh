#!/usr/bin/env bash
# Xception41 on two nodes of eight GPUs under Slurm: sbatch docs/examples/slurm.sh
# Slurm sends SIGUSR1 two minutes before the time is up; the run saves, ends with 75, and the job is queued again.
# Not tried on a cluster: none was available. The supervisor and the signal were tried on one machine.
#SBATCH --job-name=xception41
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent hosts "$master" | awk '{print $1; exit}')
export address

# One supervisor a node. If a node is lost, the job goes on with the other one and the same samples per step.
# shellcheck disable=SC2016  # each node expands these words itself
srun --kill-on-bad-exit=0 bash -c '
    own=$(getent hosts "$(hostname)" | awk "{print \$1; exit}")
    exec python tools/launch.py --min-nodes 1 --nnodes "$SLURM_JOB_NUM_NODES" --master "$address:8090" --host "$own" \
        --gpus 0,1,2,3,4,5,6,7 tools/train.py -c configs/Xception41.yaml \
        -o Global.samples_per_step=1024 -o Global.save_interval_minutes=10 -o Global.checkpoints=auto'
code=$?

if [ $code = 75 ]; then # stopped by the signal, and saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
