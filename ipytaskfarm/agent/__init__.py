"""The agent: one per machine. It starts, watches, ends and replaces its engines, and relays for them.

`supervisor`      the loop: it receives all events and handles them
`engines`         the table of engines, from the fork to the report of their end
`zygote`          the process that forks them; `zygote_process` starts it, `provisioner` is the same as Jupyter sees it
`relay`           hand-outs in, results out, nothing lost between
`fetching`        large values for a node that does not see the farm's folder; `uploading` those from there
`limits`          time limits, interrupts, stopped processes
`watch`           applies the limits to running engines, and reads their stacks
`memory`          private memory of engines, and which engine must end when memory is short
`own_files`       checks that tasks have not spoiled the agent's files
`kernel_streams`  the kernels of frozen engines, for clients on other machines
`reaping`         kills the processes that a dead engine left behind
`sweep`           reports the engines that a dead agent left behind

The agent has no policy: the controller decides which engines exist, and what they run. It unpickles nothing.
"""

from __future__ import annotations
