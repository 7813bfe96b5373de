#!/bin/bash
# Several machines under Slurm: sbatch slurm.sh train.py --its --arguments
#
# Five minutes before the time limit all ranks save one checkpoint and leave; the job goes back into the queue and goes
# on from there. `output_dir` of the script must be a folder that all nodes see.
#SBATCH --job-name=unsloth
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1         # one launcher on each node, which starts a rank for each of its GPUs
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300         # B: to this script, which must know that time is up
#SBATCH --requeue                   # also after a node has failed
#SBATCH --open-mode=append          # one log, however often it is requeued
set -euo pipefail

# The launcher forwards SIGUSR1 to its ranks, and gives them the rest of the five minutes.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270
export UNSLOTH_ACCEL_RESUME=auto

config=$(unsloth-accel config path ddp_multinode)
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
options=(
    --config_file "$config"
    --num_machines "$SLURM_NNODES"
    --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))"
    --main_process_ip "${nodes%%$'\n'*}" # the first one
    --main_process_port "$((20000 + SLURM_JOB_ID % 20000))" # so that two jobs on one node do not meet
)

time_is_up=
trap 'time_is_up=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1 # the steps, not this script

# The rank of the machine is known on the machine.
# shellcheck disable=SC2016
srun bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' bash "${options[@]}" "$@" &
step=$!

code=0
wait "$step" || code=$?
if [[ -n $time_is_up ]]; then
    code=0
    wait "$step" || code=$? # the first wait was interrupted by the signal
    [[ $code -eq 0 ]] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
