#!/bin/bash
# One agent per element of a job array.  A name in braces after @ is filled in; a line with one that has no value goes.
#BSUB -J "@{job_name}[@{indices}]"
#BSUB -r
#BSUB -n @{cpus}
#BSUB -R "span[hosts=1]"
#BSUB -M @{memory} -R "rusage[mem=@{memory}]"
#BSUB -W @{time_limit}
#BSUB -wt @{warning} -wa TERM
#BSUB -q @{queue}
#BSUB -P @{account}
#BSUB -o /dev/null
@{directives}

index=$LSB_JOBINDEX
node=${LSB_HOSTS%% *}
engines=${LSB_DJOB_NUMPROC:-cores}
engines=@{engines}
ends_at=
ends_at=$(($(date +%s) + @{time_limit_s}))
@{seats}
# LSF would keep what is printed on the node until the job's end.
exec >>@{logs}/"$name".out 2>&1
@{prologue}
# In the shell's place, so that LSF's SIGTERM reaches it.
exec @{agent}
