#!/usr/bin/env bash
#SBATCH --job-name=keepfit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# A recipe on several nodes, one torchrun on each; a node that fails or a job that is requeued goes on from the last
# checkpoint. Submitted from the project's folder, with a folder that all nodes share for OUT:
#   RECIPE=vit-b-16 PUBLIC=... ELITE=... TEXT_TOWER=runs/text-tower sbatch training/recipes/slurm.sh [flags]
#   bash training/recipes/slurm.sh --smoke      two processes on this machine, without SLURM
# TEXT_TOWER must exist: run stage 1 first, on one machine.
set -euo pipefail
export RECIPE=${RECIPE:-laptop}
if [[ "${1:-}" == "--smoke" ]]; then
    PROCESSES=2 exec bash "$(dirname "${BASH_SOURCE[0]}")/$RECIPE.sh" "$@"
fi
: "${SLURM_JOB_ID:?submit this with sbatch, or give --smoke}" "${TEXT_TOWER:?set TEXT_TOWER to a text tower of stage 1}"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # restarts on several nodes need a new store
export HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export GPUS=${SLURM_GPUS_ON_NODE:-8}
srun --kill-on-bad-exit=1 bash "training/recipes/$RECIPE.sh" "$@"
