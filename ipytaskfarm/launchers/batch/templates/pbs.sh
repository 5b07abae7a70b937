#!/bin/bash
# One agent per element of a job array.  A name in braces after @ is filled in; a line with one that has no value goes.
#PBS -S /bin/bash
#PBS -N @{job_name}
#PBS -J @{indices}
#PBS -r y
#PBS -l select=@{select}
#PBS -l walltime=@{time_limit}
#PBS -q @{queue}
#PBS -A @{account}
#PBS -j oe
#PBS -o /dev/null
@{directives}

index=${PBS_ARRAY_INDEX:-0}
node=$(head -n 1 "$PBS_NODEFILE")
engines=${NCPUS:-cores}
engines=@{engines}
ends_at=
ends_at=$(($(date +%s) + @{time_limit_s}))
@{seats}
# PBS would keep what is printed on the node until the job's end.
exec >>@{logs}/"$name".out 2>&1
@{prologue}
# In the shell's place, so that its end is the job's.
exec @{agent}
