"""What runs once per machine: starts, watches, ends and replaces its engines, and relays for them.

`supervisor`    the loop: what arrives, and what is done about it
`engines`       the table of engines, from fork to the report of their end
`zygote`        the handle on the process that forks them, `provisioner` the same as Jupyter sees it
`relay`         hand-outs in, results out, nothing lost between
`limits`        time limits, interrupts, stopped processes, stacks
`memory`        what engines have of their own, and which has to go
`reaping`       what a dead engine left behind
`sweep`         what a dead agent left behind

The agent has no policy: the controller says which engines, and what they run.  It unpickles nothing.
"""

from __future__ import annotations
