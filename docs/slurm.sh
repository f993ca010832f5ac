#!/usr/bin/env bash
# One run on two nodes of four GPUs each: sbatch docs/slurm.sh [KEY=VALUE …]
#SBATCH --job-name=sparsereg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4        # one process for each GPU, as trainer.devices says below
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60           # a minute before the end: the run stops and says how to go on
#SBATCH --output=slurm-%j.out
set -euo pipefail
source .venv/bin/activate
srun python train.py trainer=ddp trainer.num_nodes="$SLURM_NNODES" \
    trainer.devices=4 trainer.precision=bf16-mixed trainer.enable_progress_bar=false "$@"
