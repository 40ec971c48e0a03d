#!/bin/bash
# One process on each of four nodes, which train as one; on GPUs one process for each GPU:
#     sbatch examples/launch/slurm.sh --config=configs/cifar10.py --workdir=/shared/runs/cifar10
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time is over, SIGTERM to the processes, not to this script ("B:" would do that).
#SBATCH --signal=TERM@120

# For GPUs: --ntasks-per-node=8 --gpus-per-task=1. JAX gives each task one of them.
# Until all processes have ended: when one has been lost, the others take up to half a minute to end, too.
srun --kill-on-bad-exit=0 python main.py "$@"
status=$?
# 75: told to stop, and saved. 134, 139: another process was lost. 137, 143: killed, as a node that goes down kills.
case $status in
    75 | 134 | 137 | 139 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $status
