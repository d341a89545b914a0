#!/bin/bash
#SBATCH --job-name=mora
#SBATCH --array=1-4
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=1440
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=ROOT/outputs/slurm/%A_%a.out
#SBATCH --partition=gpu
#SBATCH --mem=200G

cd ROOT
export SUBMITIT_EXECUTOR=slurm
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --unbuffered PYTHON -m mora.suite table1 --scale paper --hardware slurm --jobs 1 --seeds 3 --only r=8 task=uuid --set hardware.offload=true
