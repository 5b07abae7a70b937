"""The process of an engine, from the fork to its end."""

from __future__ import annotations

import asyncio
import atexit
import builtins
import functools
import getpass
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import msgspec

from .. import engine as package
from ..core.messages import (
    CommandDone,
    EngineCommand,
    EngineNote,
    FromEngine,
    Granted,
    LaneHello,
    OutputQuery,
    OutputText,
    PropertiesChanged as PropertiesMessage,
)
from ..core.messages.blob_chunks import BlobHere, BlobKept
from ..core.messages.payload import FailureBody
from ..core.messages.running_task import TaskReply
from ..serialization import rebuild_proxies
from ..serialization.exceptions import name_place
from ..serialization.rebuild_maps import was_named
from ..storage.blobs import Blobs, fetch_from, use
from ..system.bell import Bell
from ..system.flight_recorder import Recorder
from ..version import __version__
from .baseline import LOOK_EVERY_S, Baseline
from .capture import Capture
from .child_processes import Starts
from .commands import Commands
from .descriptors import catch_descriptors
from .edited_modules import EDITED
from .environments import Environments
from .fetching import BlobRequests, NodeBlobs
from .interrupt import Interrupts
from .kernel import Cells, EngineApp, make_app
from .lane import EngineLane, QueuedRun, Step
from .library_hooks import bars_as_text, keep_attached_memory, watch_pools
from .namespace import Namespace
from .plain import PlainTest
from .profiling import Profiling
from .properties import Properties, PropertyReports
from .result_bell import PAUSE_S, ResultBell
from .runner import Runner
from .shared_parts import Parts
from .sinks import SINK
from .streams import follow_threads, forget_parent
from .surroundings import Faults, Loops


class EngineSettings(msgspec.Struct, frozen=True):
    """The settings of an engine in the zygote's "fork" request; see there."""

    engine: str
    id: int
    folder: str
    connection_file: str
    recorder: str
    output: str
    stack: str
    cwd: str
    env: dict[str, str | None] = {}
    umask: int | None = None
    """The user's own umask, for files that tasks make; None leaves it as it is."""
    stdout: str = ""
    """The file behind descriptor 1, which the agent reads after the engine's death. "": one in memory."""
    node: str = ""
    farm: str = "default"
    incarnation: str = ""
    """The farm's incarnation; "": unknown."""
    blobs: str = ""
    """The farm's folder of large values, if this node sees it."""
    copies: str = ""
    """Otherwise the node's own folder, into which the agent brings them."""


def run_engine(settings: EngineSettings) -> NoReturn:
    """Run an engine until its end. Called in the forked child; it never returns.

    An error during the start ends the process with status 1, and its text is in the output.
    """
    try:
        # The farm's own threads take no signals. Signals belong to the main thread, which may block them or wait for
        # them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        catch_descriptors(settings.output, settings.stdout)
        forget_parent()
        _watch_for_faults(settings.stack)
        for each in EDITED.begin():
            print(f"ipytaskfarm: {each.name} was preloaded before {each.file} changed: start the farm again to use it")
        EngineProcess(settings).serve(mask)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc(file=sys.__stderr__)
        status = 1
    finally:
        _leave(status)


def _leave(status: int) -> NoReturn:
    """End the process without Python's own shutdown, which would wait for threads of the farm and of the user."""
    try:
        atexit._run_exitfuncs()
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
    except BaseException:
        import traceback

        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def _watch_for_faults(stack_file: str) -> None:
    """Write fatal errors into the output, and the main thread's stack into its file on request."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    Faults.begin(os.open(stack_file, flags, 0o600))  # stays open as long as the process lives


def _blobs(folder: str) -> Blobs | None:
    if not folder:
        return None
    blobs = Blobs(folder)
    use(blobs)
    blobs.sees_file = was_named
    return blobs


class EngineProcess:
    """Kernel, lane, runner and commands of this process."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        os.chdir(settings.cwd)
        sys.path.insert(0, settings.cwd)
        sys.argv = [""]  # as at a prompt: the zygote's arguments are not the user's
        _give_threads()
        self._app = make_app(settings.connection_file, settings.folder)
        shell: Any = self._app.shell
        kernel: Any = self._app.kernel
        recorder = self._recorder = Recorder.open(settings.recorder)
        self._counter = int(settings.engine.rpartition(".")[2])
        self._bell = ResultBell(Bell.connect(Path(settings.folder) / "bell.sock"), recorder, self._counter)
        self._slice_ended_s = 0.0
        self._capture = Capture(settings.output, settings.stdout, recorder.words)
        follow_threads()
        _no_keyboard()
        bars_as_text()
        self._facts = gather_facts(settings)
        properties = Properties(self._facts, self._tell_properties)
        self._interrupts = Interrupts(recorder)
        self._prepare_for_children()
        self._loop = asyncio.get_event_loop()
        self._loops = Loops(self._loop)
        self._lock: asyncio.Lock = kernel._main_asyncio_lock
        self._look_later: asyncio.TimerHandle | None = None
        self._baseline = Baseline(self._loops, self._capture)
        kernel.after_cell = self._after_cell
        self._lane = EngineLane(f"{settings.folder}/lane.sock", settings.engine, self._loop, self._lock, self)
        self._property_reports = PropertyReports(self._lane.send, self._lane.watch_soon)
        namespace = self._namespace = Namespace(shell, settings.id)
        package._here, package._names = package.Engine(settings.id, properties, self._facts), namespace.names
        kernel.before_cell = self._before_cell
        self._environments = Environments(settings.engine, namespace, self._baseline, self._lane.send)
        profiling = Profiling()
        self._sampler = profiling.sampler
        self._fetching: BlobRequests | None = None
        self._sending: NodeBlobs | None = None
        if settings.copies:
            copies = Blobs(settings.copies, durable=False)
            self._fetching, self._sending = BlobRequests(copies, self._lane.send), NodeBlobs(copies, self._lane.send)
            fetch_from(self._fetching.fetch)
        parts = Parts(
            settings.engine, settings.id, recorder, namespace, properties, self._facts, Cells(shell), self._capture,
            self._baseline, self._sending or _blobs(settings.blobs), self._send, self._environments, profiling,
            self._loops, settings.incarnation,
        )  # fmt: skip
        self._runner = Runner(parts, self._interrupts, PlainTest(shell), shell, self._finished, self._lane.company_over)
        package._current = self._runner.current
        self._commands = Commands(parts, self._lane.take_commands, self._runner.edits)

    def _say_full(self, waits: bool) -> None:
        """Say that a result waits for room on the disk, or that it does not any more."""
        folder = os.path.dirname(self._settings.recorder)
        text = f"its result waits for room on the disk of {folder}, which is full, or a quota or the inodes are used up"
        self._lane.send(EngineNote(self._settings.id, text if waits else "", self._settings.engine))

    def _prepare_for_children(self) -> None:
        """Prepare child processes of tasks to find by-value objects, and error messages to name this engine."""
        Starts(f"{self._settings.folder}/modules-{self._counter}").install()
        watch_pools()
        keep_attached_memory()
        rebuild_proxies.inherits = True
        name_place(f"on node {self._facts['node']}, engine {self._settings.id}")

    def serve(self, mask: Iterable[int]) -> None:
        """Say hello and work until told to stop. `mask` has the signals that stay blocked in the main thread."""
        self._interrupts.install()
        self._recorder.on_full = self._say_full
        for name in ("LINES", "COLUMNS"):  # readline sets them only for children, without os.environ
            if name not in os.environ:
                os.unsetenv(name)
        self._baseline.invalidate()
        if self._settings.umask is not None:
            os.umask(self._settings.umask)  # from here on, the farm's own files are created with an explicit mode
        self._loop.call_soon(self._say_hello, mask)
        self._app.start()
        self._lane.finish()
        if self._recorder.is_marked:
            self._runner.marks.finish()
        _remove_files(self._app)

    def _say_hello(self, mask: Iterable[int]) -> None:
        settings = self._settings
        if self._recorder.is_marked:
            self._runner.marks.start()
        try:
            self._lane.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._lane.send(LaneHello(settings.engine, os.getpid(), self._facts, settings.connection_file))

    # -- the interface of the lane

    def run(self, job: QueuedRun) -> Step:
        return self._runner.run(job)

    def command(self, command: EngineCommand) -> Step:
        if self._runner.freezer.run is not None:
            failure = FailureBody("EngineLost", f"engine {self._settings.id} is frozen and does no commands")
            body = msgspec.msgpack.encode(failure)
            self._lane.send(CommandDone(self._settings.engine, command.session, command.n, False, body))
            return None
        self._loops.show()
        return self._commands.run(command)

    def clear_queue(self, command: EngineCommand) -> None:
        self._commands.clear_queue(command)

    def interrupt(self, command: EngineCommand) -> None:
        self._commands.interrupt(command)

    def profile(self, command: EngineCommand) -> None:
        self._commands.profile(command)

    def output(self, query: OutputQuery) -> OutputText:
        return self._commands.output(query) if query.session else self._runner.output(query)

    def in_company(self) -> bool:
        """Return whether coroutine tasks are in progress."""
        return len(self._runner.coroutines) > 0

    def begin_slice(self) -> None:
        """Switch from a console's surroundings to those of tasks."""
        self._sampler.busy()
        self._capture.settle(to_console=False)
        self._baseline.refresh()
        self._runner.edits.begin_slice()
        self._bell.begin()

    def join_slice(self) -> None:
        """Begin more coroutine tasks beside those in progress."""
        self._runner.edits.begin_slice()

    def end_slice(self) -> None:
        self._loops.show()
        self._sampler.idle()
        if not self._lane.waiting:
            self._bell.ring_late()
        if self._runner.freezer.run is not None:
            return
        is_due = self._baseline.look_is_due()
        if is_due:
            self._baseline.look()
        if (not is_due or EDITED.unsorted) and self._look_later is None:
            self._look_later = self._loop.call_later(LOOK_EVERY_S, self._look)
        EDITED.ended_s = self._slice_ended_s = time.perf_counter()

    def _look(self) -> None:
        """Examine the surroundings if nothing has run for a while; this is the loop's callback."""
        self._look_later = None
        if self._lock.locked() or self._runner.freezer.run is not None:
            return
        left_s = self._slice_ended_s + LOOK_EVERY_S - time.perf_counter()
        if left_s > 0:
            self._look_later = self._loop.call_later(left_s, self._look)
        else:
            self._baseline.look()
            if EDITED.unsorted:
                EDITED.sort()

    def expect(self, number: int, first: int, count: int) -> None:
        """Note a hand-out that has arrived. Called in the lane's thread."""
        self._runner.marks.expect(number, first, count)

    def watch(self) -> None:
        """Do the periodic work: called in the lane's thread 20 times a second while there is work."""
        self._capture.shrink()
        self._recorder.words.flush()
        self._interrupts.again()
        self._commands.watch()
        self._runner.watch()
        self._property_reports.watch()
        if self._property_reports.is_waiting:
            self._lane.watch_soon()
        self._bell.ring_if_due()

    def granted(self, answer: Granted) -> None:
        self._runner.granted(answer)

    def answered(self, reply: TaskReply) -> None:
        self._runner.answered(reply)

    def arrived(self, answer: BlobHere | BlobKept) -> None:
        if isinstance(answer, BlobKept):
            if self._sending is not None:
                self._sending.kept(answer)
        elif self._fetching is not None:
            self._fetching.arrived(answer)

    def stop(self) -> None:
        """Tear the environment down, then end the loop and with it the process."""
        self._environments.tear_down()
        self._app.io_loop.stop()

    # -- callbacks

    def _finished(self, run_s: float) -> None:
        """Report a result in the recorder, at once or together with the next ones."""
        self._property_reports.flush()
        in_company = self.in_company()
        self._bell.result(run_s, self._lane.waiting, in_company)
        if in_company and self._bell.gathered == 1:  # no slice ends soon
            self._loop.call_later(PAUSE_S, self._bell.ring_late)

    def _tell_properties(self, version: int, packed: bytes, plain: dict[str, str | float | bool]) -> None:
        self._property_reports.changed(PropertiesMessage(self._settings.engine, version, packed, plain))

    def _send(self, message: FromEngine) -> None:
        """Send a message of a run or a command. A command's end follows the properties that it has set."""
        if type(message) is CommandDone:
            self._property_reports.flush()
        self._lane.send(message)

    def _before_cell(self) -> None:
        self._runner.freezer.used()
        self._namespace.begin_cell()

    def _after_cell(self) -> None:
        self._namespace.end_cell()
        self._capture.settle(to_console=True)
        self._baseline.invalidate()


def gather_facts(settings: EngineSettings) -> dict[str, Any]:
    """Return the facts about this engine, under the names that `depend` functions use."""
    return {
        "id": settings.id,
        "hostname": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": sys.platform,
        "os": platform.system(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "version": __version__,
        "python": platform.python_version(),
        "node": settings.node or socket.gethostname(),
        "started": time.time(),
    }


def _give_threads() -> None:
    """Set the number of threads of preloaded libraries. They have one thread, so that the zygote could be forked."""
    count = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    if "numpy" in sys.modules and count.isdigit() and int(count) > 1:
        import threadpoolctl

        threadpoolctl.threadpool_limits(int(count))


def _no_keyboard() -> None:
    """Make `input` and its like raise in tasks, where nobody could answer.

    Cells of a console use ipykernel's own ways.
    """
    builtins.input = _refuse_input
    getpass.getpass = _refuse("getpass()", "push the value, or pass it as an argument")
    usual = sys.breakpointhook
    refuse = _refuse("breakpoint()", _DEBUG_HERE)

    @functools.wraps(usual)
    def hook(*args: Any, **kwargs: Any) -> Any:
        return usual(*args, **kwargs) if SINK.get() is None else refuse()

    sys.breakpointhook = hook


_DEBUG_HERE = "tc.debug(id) runs the task in your own process, where it stops, and so does task.run_local()"
_DEBUGGERS = frozenset({"pdb", "bdb", "ipdb", "pudb"})
_CONSOLES = frozenset({"code", "IPython"})


def _refuse_input(*args: object, **kwargs: object) -> NoReturn:
    """Raise in the place of `input`, for the debuggers and consoles that read with it, too."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and SINK.get() is not None:
        module, caller = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        if module.partition(".")[0] in _DEBUGGERS or module == "IPython.core.debugger":
            raise _unanswered("a debugger was started", _DEBUG_HERE)
        if module.partition(".")[0] in _CONSOLES and caller in ("interact", "embed", "mainloop"):
            raise _unanswered(
                "a console was opened", "task.run_local() runs the task in your own process, where it opens"
            )
        frame = frame.f_back
    raise _unanswered("input() was called", "push the value, or pass it as an argument")


def _refuse(name: str, advice: str) -> Callable[..., Any]:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise _unanswered(f"{name} was called", advice)

    return refuse


def _unanswered(what: str, advice: str) -> RuntimeError:
    return RuntimeError(f"{what} on an engine, where nobody can answer: {advice}")


def _remove_files(app: EngineApp) -> None:
    """Remove the connection file and the sockets. The rest of the kernel ends with the process."""
    atexit.unregister(app.close)
    atexit.unregister(app.iopub_thread.stop)
    app.cleanup_connection_file()
    app.cleanup_ipc_files()
