#!/usr/bin/env bash
# Xception41 on two nodes of eight GPUs under Slurm: sbatch docs/examples/slurm.sh
# Two minutes before the time limit Slurm sends SIGUSR1: the run saves and ends with 75. Then, and after a failure, the job is
# queued again, up to ten times, and resumes its newest checkpoint.
# Not tried on a cluster: none was available. The signal, the exit codes and resuming were tried on one machine.
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

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent hosts "$first" | awk '{print $1; exit}')
export address

# If a node fails, Slurm ends the step on the others, because they would wait for it.
# shellcheck disable=SC2016  # each node expands these words itself
srun --kill-on-bad-exit=1 bash -c '
    host=$(getent hosts "$(hostname)" | awk "{print \$1; exit}")
    exec ppxcls launch --restarts 0 --nnodes "$SLURM_JOB_NUM_NODES" --master "$address:8090" --host "$host" \
        --gpus 0,1,2,3,4,5,6,7 train -c configs/Xception41.yaml \
        -o Global.save_interval_minutes=10 -o Global.checkpoints=auto'
code=$?

# 2 is an invalid config, which another start does not cure.
if [ $code != 0 ] && [ $code != 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
