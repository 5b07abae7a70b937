#!/bin/bash
# One agent per element of a job array.  A name in braces after @ is filled in; a line with one that has no value goes.
#SBATCH --job-name=@{job_name}
#SBATCH --array=@{indices}
#SBATCH --nodes=1 --ntasks=1
#SBATCH --cpus-per-task=@{cpus}
#SBATCH --mem=@{memory}
#SBATCH --time=@{time_limit}
#SBATCH --signal=B:TERM@@{signal}
#SBATCH --partition=@{partition}
#SBATCH --account=@{account}
#SBATCH --qos=@{qos}
#SBATCH --requeue --open-mode=append
#SBATCH --output=@{output}
@{directives}

index=$SLURM_ARRAY_TASK_ID
node=$SLURMD_NODENAME
engines=${SLURM_CPUS_ON_NODE:-cores}
engines=@{engines}
ends_at=$SLURM_JOB_END_TIME
ends_at=${SLURM_JOB_END_TIME:-$(($(date +%s) + @{time_limit_s}))}
@{seats}
@{prologue}
# In the shell's place, so that Slurm's SIGTERM reaches it.
exec @{agent}
