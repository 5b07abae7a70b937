"""The zygote: a single-threaded process that has imported IPython and forks engines.

A fresh interpreter needs 0.5-1 s until it is an IPython kernel. A fork of a process that has everything imported needs
50 ms and shares its memory. Each agent has one zygote. It is the parent of all the agent's engines, and the only place
that calls `os.fork`.

The agent starts it with one end of a ``socketpair(AF_UNIX, SOCK_STREAM)`` inherited::

    python -m ipytaskfarm.engine.zygote --control-fd 7 --farm default [--preload numpy --preload ...]

Both directions carry frames: 4 bytes big-endian length, then that many bytes of one JSON object in UTF-8. Several
frames may arrive in one read.

agent -> zygote::

    {"op": "fork", "engine": "<incarnation>", "id": 3,   # the engine id that people see
     "folder": "<the agent's folder>",                   # lane.sock and bell.sock are in here
     "connection_file": "<folder>/kernel-<counter>.json",# written by the engine, 0600, ipc transport, sockets beside it
     "recorder": "<folder>/engine-<counter>.rec",        # made by the agent before this request
     "output": "<folder>/engine-<counter>.out",          # the engine's fd 2, opened O_APPEND, made 0600
     "stack": "<folder>/engine-<counter>.stack",         # faulthandler writes here on SIGRTMIN+6
     "env": {"NAME": "value"},                           # added to the zygote's own environment; null removes one
     "cwd": "<the farm's start folder>",                 # put on the engine's sys.path, first
     "umask": 18,                                        # optional: the user's, for tasks
     "node": "<the agent's node name>", "farm": "default",   # both optional: for facts and ps
     "blobs": "<folder>"}                                # optional: for large values, see storage/blobs.py
    {"op": "quit"}                                       # kill the remaining engines, then exit 0
    end of file                                          # the same

zygote -> agent::

    {"op": "ready", "pid": 4711, "dropped": [["numpy", "it started 2 threads"]]}     # once, first
    {"op": "forked", "engine": "...", "id": 3, "pid": 4712}
    {"op": "failed", "engine": "...", "id": 3, "error": "OSError: ..."}             # that fork made no engine
    {"op": "exited", "engine": "...", "id": 3, "pid": 4712, "status": 9, "maxrss": 41943040}

``status`` is the raw wait status (``os.waitstatus_to_exitcode``), ``maxrss`` the peak of the process in bytes.
``exited`` comes after ``forked``, exactly once for each, and is sent when the child has been reaped. An agent opens a
pidfd on ``forked``. It has the right process if the process's parent is the zygote once the pidfd is open.

An engine that is ready says so on the lane (`LaneHello`), not here. One that cannot start exits with status 1 << 8, and
its ``output`` file has the reason as text. Each engine is the leader of its own session and process group (pgid ==
pid), so a ``killpg`` reaches the children that it did not detach.

Deaths propagate downwards. The zygote asks the kernel for SIGKILL at the agent's death (PR_SET_PDEATHSIG, then it
checks its parent again, as the agent may be dead already). Each engine asks for SIGKILL at the zygote's death.
PDEATHSIG refers to the parent *thread*: the agent must start the zygote from a thread that lives as long as the agent,
its main thread.

Signals to an engine: SIGRTMIN+5 means "look at `want` in the recorder". SIGRTMIN+6 writes the main thread's Python
stack to ``stack`` (appended; also while C code holds the GIL). SIGTERM ends it, or is ignored with --stay. SIGINT
belongs to the kernel.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from ..core.failure_values import FAILURE_VALUES
from ..core.requirements import THREADS
from ..system.process import PYTHONPATH_BEFORE, name_process
from .change_hooks import watch

if TYPE_CHECKING:
    from .process import EngineSettings

TRAINED = (
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.core.magics.ast_mod",
    "IPython.core.magics.execution",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "IPython.utils.module_paths",
    "IPython.utils.timing",
    "pexpect",
    "runpy",
    "tornado.platform.asyncio",
    "unicodedata",
)
"""Modules that a kernel imports while it starts and runs its first tasks, beyond the imports of `engine.process`.
`tests.unit.test_engine_zygote` names those that are missing here."""

_LENGTH = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1


class ForkedEngine:
    """A child of the zygote."""

    def __init__(self, name: str, engine_id: int, pid: int) -> None:
        self.name = name
        self.id = engine_id
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)


class ForkServer:
    """The main loop: it handles requests from the agent and exits of engines."""

    def __init__(self, control: socket.socket, farm: str, stays: bool = False) -> None:
        self._control = control
        self._stays = stays
        self._farm = farm
        self._engines: dict[int, ForkedEngine] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._buffer = bytearray()

    def serve(self) -> None:
        """Serve until told to quit, or until the agent is gone."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._engines:
                    self._reap(self._engines[fd])
                elif not self._read():
                    self._end()
                    return

    def tell(self, **message: Any) -> None:
        """Send one frame to the agent. If the agent is gone, nothing happens."""
        body = json.dumps(message).encode()
        try:
            self._control.sendall(_LENGTH.pack(len(body)) + body)
        except OSError:
            pass  # the end of file is noticed next

    def _read(self) -> bool:
        """Handle what has arrived. Return False if it was the last."""
        try:
            data = self._control.recv(1 << 16)
        except ConnectionResetError:
            return False
        if not data:
            return False
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            request = json.loads(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            if request["op"] == "quit":
                return False
            self._fork(request)
        return True

    def _fork(self, request: dict[str, Any]) -> None:
        import msgspec

        from .process import EngineSettings

        name, engine_id = request["engine"], request["id"]
        parent = os.getpid()
        try:
            settings = msgspec.convert(request, EngineSettings)
            pid = os.fork()
        except (OSError, msgspec.ValidationError) as error:
            self.tell(op="failed", engine=name, id=engine_id, error=f"{type(error).__name__}: {error}")
            return
        if pid == 0:
            self._become(settings, parent)
        engine = ForkedEngine(name, engine_id, pid)
        self._engines[engine.pidfd] = engine
        self._poll.register(engine.pidfd, select.POLLIN)
        self.tell(op="forked", engine=name, id=engine_id, pid=pid)

    def _become(self, settings: EngineSettings, parent: int) -> NoReturn:
        """Run the engine, in the child."""
        try:
            die_with_parent(parent)
            os.setsid()
            for engine in self._engines.values():
                os.close(engine.pidfd)
            self._control.close()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            if self._stays:
                stay()
            for name, value in settings.env.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            _new_chances()
            name_process(f"ipytaskfarm engine {settings.id} --farm {settings.farm}")
            gc.enable()
            from .process import run_engine

            run_engine(settings)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)

    def _reap(self, engine: ForkedEngine) -> None:
        _, status, usage = os.wait4(engine.pid, 0)
        self._poll.unregister(engine.pidfd)
        del self._engines[engine.pidfd]
        os.close(engine.pidfd)
        maxrss = usage.ru_maxrss * 1024
        self.tell(op="exited", engine=engine.name, id=engine.id, pid=engine.pid, status=status, maxrss=maxrss)

    def _end(self) -> None:
        for engine in list(self._engines.values()):
            signal.pidfd_send_signal(engine.pidfd, signal.SIGKILL)
        for engine in list(self._engines.values()):
            self._reap(engine)


def die_with_parent(parent: int) -> None:
    """Ask for SIGKILL at the parent's death. If the parent has died before, end now."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def _new_chances() -> None:
    """Seed numpy's generator, so that forked children do not draw the same numbers. Python seeds ``random`` itself."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def warm_up() -> None:
    """Import the modules that engines need."""
    watch()  # before any module keeps the original functions
    # debugpy costs every engine 8 MiB and 70 ms, and is not used on a farm. ipykernel checks once whether it exists.
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("ipykernel.debugger")
    finally:
        del sys.modules["debugpy"]
    importlib.import_module("ipytaskfarm.engine.process")
    importlib.import_module("setproctitle")
    for name in TRAINED:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # another version of a dependency: the engine will import what it needs


def _forget_our_path() -> None:
    """Restore the user's own PYTHONPATH. The agent had changed it to find this package, which children of tasks do not
    need.
    """
    own = os.environ.pop(PYTHONPATH_BEFORE, None)
    if own:
        os.environ["PYTHONPATH"] = own
    elif own is not None:
        os.environ.pop("PYTHONPATH", None)


def preload(names: Iterable[str]) -> list[tuple[str, str]]:
    """Import the modules that the user has chosen, where this is safe.

    After a module has started a thread, a fork is not safe, and the import cannot be undone. So each module is tried in
    a child first.

    Returns:
        (name, reason) for each module that was not imported.
    """
    dropped = []
    # Importing numpy starts the threads of its BLAS, unless it may have only one. Engines restore the user's number.
    limits = THREADS
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(dict.fromkeys(limits, "1"))
    try:
        for name in names:
            why = _try_in_child(name)
            if why:
                dropped.append((name, why))
            else:
                importlib.import_module(name)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return dropped


def _try_in_child(name: str) -> str:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            importlib.import_module(name)
            threads = len(os.listdir("/proc/self/task"))
            why = (
                f"importing it starts {threads - 1} threads: engines could not be forked safely" if threads > 1 else ""
            )
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
        os.write(writing, why.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as answer:
        why = answer.read()
    _, status = os.waitpid(pid, 0)
    return why if status == 0 else f"importing it ended the process ({os.waitstatus_to_exitcode(status)})"


def stay() -> None:
    """Ignore SIGTERM, except in children.

    Batch systems send it to all processes of a job, and running tasks shall finish: the agent ends engines by other
    means. Processes that this one starts or forks end by SIGTERM as usual.
    """
    signal.signal(signal.SIGTERM, _pass_by)
    # Blocked around a fork: the child may be told to end before it has restored the usual behaviour.
    hold = partial(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGTERM})
    let_go = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=_end_by_it_again)


def _pass_by(number: int, frame: object) -> None:
    # A handler in Python, because SIG_IGN would be inherited by programs that are started.
    pass


def _end_by_it_again() -> None:
    if signal.getsignal(signal.SIGTERM) is _pass_by:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def main(argv: list[str] | None = None) -> int:
    """Run the zygote and return its exit code."""
    parser = argparse.ArgumentParser("python -m ipytaskfarm.engine.zygote", description="Fork an agent's engines.")
    parser.add_argument("--control-fd", type=int, required=True, help="our end of the agent's socketpair")
    parser.add_argument("--farm", default="default", help="the farm's name, for ps")
    parser.add_argument("--preload", action="append", default=[], help="a module to import once for all engines")
    parser.add_argument("--stay", action="store_true", help="SIGTERM, to all processes of a job, is the agent's matter")
    parser.add_argument("--failure-values", choices=FAILURE_VALUES, default="masked", help="shown with a failure")
    options = parser.parse_args(argv)
    parent = os.getppid()
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent handles Ctrl-C at its terminal
    if options.stay:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control = socket.socket(fileno=options.control_fd)
    control.set_inheritable(False)
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, added by "-m"; engines add their own
    for name in ("JPY_PARENT_PID", "JPY_SESSION_NAME", "JPY_INTERRUPT_EVENT"):
        os.environ.pop(name, None)  # they belong to the notebook that the farm was started from
    _forget_our_path()
    gc.disable()
    warm_up()
    from ..serialization.tracebacks import show_values  # loaded by `warm_up`

    show_values(options.failure_values)
    from .edited_modules import watch_imports

    watch_imports()
    dropped = preload(options.preload)
    gc.collect()
    gc.freeze()
    name_process("ipytaskfarm zygote")
    zygote = ForkServer(control, options.farm, options.stay)
    zygote.tell(op="ready", pid=os.getpid(), dropped=dropped)
    zygote.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
