"""The zygote: a single-threaded process that has imported IPython and forks engines.

A fresh interpreter needs 0.5-1 s until it is an IPython kernel, a fork of one that has everything imported
needs 50 ms and shares its memory.  One zygote per agent; it is the parent of all its engines and the only
place that calls `os.fork`.

Started by the agent with one end of a ``socketpair(AF_UNIX, SOCK_STREAM)`` inherited::

    python -m ipytaskfarm.engine.zygote --control-fd 7 --farm default [--preload numpy --preload ...]

Both directions carry frames: 4 bytes big-endian length, then that many bytes of one JSON object in UTF-8.  Several
frames may arrive in one read.

agent -> zygote::

    {"op": "fork", "engine": "<incarnation>", "id": 3,   # the engine id that people see
     "folder": "<the agent's folder>",                   # lane.sock and bell.sock are in here
     "connection_file": "<folder>/kernel-<counter>.json",# written by the engine, 0600, ipc transport, sockets beside it
     "recorder": "<folder>/engine-<counter>.rec",        # made by the agent before it asks
     "output": "<folder>/engine-<counter>.out",          # the engine's fd 2, opened O_APPEND, made 0600
     "stack": "<folder>/engine-<counter>.stack",         # faulthandler writes here on SIGRTMIN+6
     "env": {"NAME": "value"},                           # added to the zygote's own environment; null removes one
     "cwd": "<the farm's start folder>",                 # put on the engine's sys.path, first
     "node": "<the agent's node name>", "farm": "default"}   # both optional: for facts and ps
    {"op": "quit"}                                       # kill the engines that are left, then exit 0
    end of file                                          # the same

zygote -> agent::

    {"op": "ready", "pid": 4711, "dropped": [["numpy", "it started 2 threads"]]}     # once, first
    {"op": "forked", "engine": "...", "id": 3, "pid": 4712}
    {"op": "failed", "engine": "...", "id": 3, "error": "OSError: ..."}             # no engine came of that fork
    {"op": "exited", "engine": "...", "id": 3, "pid": 4712, "status": 9, "maxrss": 41943040}

``status`` is the raw wait status (``os.waitstatus_to_exitcode``), ``maxrss`` the peak of the process in bytes.
``exited`` comes after ``forked``, exactly once for each, and is sent when the child has been reaped.  An agent that opens
a pidfd on ``forked`` knows it for the right one if the process's parent is the zygote once the pidfd is open.

An engine that is ready says so on the lane (`LaneHello`), not here; one that cannot start exits with status 1 << 8 and
the reason as text in its ``output`` file.  Each engine is the leader of its own session and process group (pgid == pid), so a
``killpg`` reaches the children that it did not detach.

Deaths go down the chain: the zygote asks the kernel for SIGKILL when the agent dies (PR_SET_PDEATHSIG, then rechecks its
parent, as the agent may be dead already), each engine for SIGKILL when the zygote does.  PDEATHSIG looks at the
parent *thread*: the agent must start the zygote from a thread that lives as long as itself, its main thread.

Signals to an engine: SIGRTMIN+5 is "look at `want` in the recorder", SIGRTMIN+6 writes the main thread's
Python stack to ``stack`` (appended; also while C code holds the GIL), SIGTERM ends it, SIGINT is the kernel's own.
"""

from __future__ import annotations
