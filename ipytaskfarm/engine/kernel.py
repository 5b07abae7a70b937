"""The engine as a Jupyter kernel: ``jupyter console --existing`` works with it.  It runs code that only IPython
understands (magics, ``!cmd``, ``name?``, top-level await), and shows values and figures.

It is an `IPKernelApp` without the parts that an engine does not need: parsing of a command line and of configuration
files, the history database, the debugger, TCP ports (there are ipc sockets in the agent's 0700 folder; ipykernel's pipe
for forked children would listen on the loopback interface), and subshells (their cells run in other threads and take no
lock that the runner could respect).
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from ipykernel.compiler import XCachingCompiler
from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.iostream import IOPubThread
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell
from IPython.core.events import EventManager
from IPython.core.profiledir import ProfileDir
from jupyter_client.connect import port_names, write_connection_file
from tornado import ioloop
from traitlets import Type
from traitlets.config import Config

from ..core.errors import TaskCancelled
from ..core.messages.payload import CellPlace
from ..core.text import text_of
from ..serialization.module_names import take_names
from ..system.host import is_usable
from .lane import publisher
from .library_hooks import keep_to_matplotlib
from .namespace import written_globals
from .plain import is_quiet
from .shell_commands import CalledProcessError, run_in_shell
from .sinks import SINK
from .streams import TaskStream

CELLS_REMEMBERED = 1000
"""The number of cells whose source is kept for tracebacks. IPython keeps all: 85 MiB per 200,000 tasks."""


class BoundedCompiler(XCachingCompiler):
    """IPython's compiler with bounded memory, and without ipykernel's hash in pure Python (2 ms for 10 kB)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: deque[str] = deque()

    place: CellPlace | None = None
    """The user's cell from which the next code comes; None: it comes from none."""

    def get_code_name(self, raw_code: str, code: str, number: int) -> str:
        return f"<cell {number}-{hash(code) & 0xFFFFFFFF:08x}>" if self.place is None else self.place.file

    def ast_parse(self, source: str, filename: str = "<unknown>", symbol: str = "exec") -> ast.AST:
        place, self.place = self.place, None  # further cells that the code runs are not the user's
        is_users = place is not None and place.file == filename
        tree: ast.AST = super().ast_parse(place.placed(source) if is_users and place else source, filename, symbol)
        return tree

    def cache(self, transformed_code: str, number: int = 0, raw_code: str | None = None) -> str:
        import linecache

        code = transformed_code if self.place is None else self.place.placed(transformed_code)
        name: str = super().cache(code, number, raw_code)
        self._names.append(name)
        if len(self._names) > CELLS_REMEMBERED:
            oldest = self._names.popleft()
            if oldest not in self._names:
                linecache.cache.pop(oldest, None)
                self._filename_map.pop(oldest, None)
        return name


class TaskDisplay(ZMQDisplayPublisher):
    """Sends displays of a task to its sink, and those of a console's cell to the console."""

    def publish(  # type: ignore[override]
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **kwargs: Any,
    ) -> None:
        sink = SINK.get()
        if sink is None:
            super().publish(data, metadata, transient=transient, update=update, **kwargs)
            return
        sink.display({"data": _clean(data), "metadata": metadata, "transient": transient}, update)

    def clear_output(self, wait: bool = False) -> None:
        sink = SINK.get()
        if sink is None:
            super().clear_output(wait)
        else:
            sink.clear(wait)


class TaskDisplayHook(ZMQShellDisplayHook):
    """Sends the value of a task's last expression to its sink.

    Unlike the values of MultiEngine commands and cells, the value is not kept in ``Out`` and ``_``: a million tasks
    would leave a million values.
    """

    def __call__(self, result: object = None) -> None:
        sink = SINK.get()
        if sink is None or sink.keeps_history:
            super().__call__(result)
        elif result is not None and not self.quiet_task:
            self.show_in(result)
            self.fill_exec_result(result)

    quiet_task = False
    """Whether the task's code ends in a semicolon."""

    def show_in(self, value: object) -> None:
        """Show a value in the current sink."""
        sink = SINK.get()
        assert sink is not None
        shell: Any = self.shell
        data, metadata = shell.display_formatter.format(value)
        if data:
            sink.display({"data": _clean(data), "metadata": metadata})

    def start_displayhook(self) -> None:
        if SINK.get() is None:
            super().start_displayhook()
        else:
            self.msg = {"content": {"data": {}, "metadata": {}}}

    def finish_displayhook(self) -> None:
        sink = SINK.get()
        if sink is None:
            super().finish_displayhook()
        elif self.msg is not None:
            content, self.msg = self.msg["content"], None
            if content["data"]:
                sink.display({**content, "data": _clean(content["data"])})


_WIDGET = "application/vnd.jupyter.widget-view+json"


def _clean(data: dict[str, Any]) -> dict[str, Any]:
    """Return what can be shown elsewhere of a display.

    A widget lives in the engine's process: a notebook would show "Loading widget..." for ever in place of the text that
    stands beside it.
    """
    from ipykernel.jsonutil import encode_images, json_clean

    shown = {kind: value for kind, value in data.items() if kind != _WIDGET}
    return cast("dict[str, Any]", json_clean(encode_images(shown)))


class EngineEvents(EventManager):
    """IPython's callbacks around a cell. IPython prints their errors and goes on, but an abort must get through."""

    def trigger(self, event: str, *args: Any, **kwargs: Any) -> None:
        for function in self.callbacks[event][:]:
            try:
                function(*args, **kwargs)
            except TaskCancelled:
                raise
            except (Exception, KeyboardInterrupt):
                print(f"Error in callback {function} (for {event}):")
                self.shell.showtraceback()


class EngineShell(ZMQInteractiveShell):
    """IPython's shell for tasks, which nobody watches, beside cells."""

    displayhook_class = Type(TaskDisplayHook)
    display_pub_class = Type(TaskDisplay)

    def init_environment(self) -> None:
        """Do nothing: ipykernel's TERM, PAGER, FORCE_COLOR … are for people at a prompt, and children would inherit
        them.
        """

    def init_events(self) -> None:
        super().init_events()
        usual = self.events.callbacks
        self.events = EngineEvents(self, usual)
        self.events.callbacks = usual

    async def run_code(self, code_obj: Any, result: Any = None, *, async_: bool = False) -> bool:
        """Run one statement of a cell; afterwards functions of by-value modules find the names that it has bound."""
        failed = await super().run_code(code_obj, result, async_=async_)
        written_globals.take()
        take_names(tell=True)
        return bool(failed)

    def system_piped(self, cmd: str) -> None:
        """Run ``!command``, which has no input here."""
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        code = self.user_ns["_exit_code"] = run_in_shell(self.var_expand(cmd, depth=1))
        if code and getattr(self, "system_raise_on_error", False):  # IPython 9.5
            raise CalledProcessError(code, cmd)

    system = system_piped

    clear_names: Callable[[], None] = staticmethod(lambda: None)
    """Empties the namespace, and gives it what belongs to the farm."""

    def reset(self, new_session: bool = True, aggressive: bool = False) -> None:
        """Do what ``%reset`` asks for; names of the farm, and sticky ones, are there afterwards."""
        super().reset(new_session, aggressive)
        number = self.execution_count
        self.clear_names()
        self.execution_count = number

    def ask_exit(self) -> None:
        """End the task on ``exit``, never the engine, which belongs to the farm."""
        if SINK.get() is not None:
            raise SystemExit
        payloads: Any = self.payload_manager
        payloads.write_payload({"source": "ask_exit", "keepkernel": True})

    def payloadpage_page(self, strg: Any, start: int = 0, screen_lines: int = 0, pager_cmd: str | None = None) -> None:
        """Open a pager for ``int?`` in a console; in a task, show the text as a display."""
        sink = SINK.get()
        if sink is None:
            super().payloadpage_page(strg, start, screen_lines, pager_cmd)
        else:
            sink.display({"data": _clean(strg if isinstance(strg, dict) else {"text/plain": strg})})

    def showtraceback(
        self,
        exc_tuple: Any = None,
        filename: str | None = None,
        tb_offset: int | None = None,
        exception_only: bool = False,
        running_compiled_code: bool = False,
    ) -> None:
        if SINK.get() is None:
            super().showtraceback(exc_tuple, filename, tb_offset, exception_only, running_compiled_code)
        elif not running_compiled_code and not exception_only:
            # This is not the run's own error, which its result reports: a callback failed, or a figure cannot be drawn.
            import traceback

            traceback.print_exc(file=sys.stderr)

    def _format_exception_for_storage(self, exception: Any, *args: Any, **kwargs: Any) -> Any:
        # This is for IPython's history. An error of the exception's own class while it gives its text must not end the
        # cell.
        try:
            return super()._format_exception_for_storage(exception, *args, **kwargs)
        except BaseException:
            return {"ename": type(exception).__name__, "evalue": text_of(exception), "traceback": []}

    def showsyntaxerror(self, filename: str | None = None, running_compiled_code: bool = False) -> None:
        if SINK.get() is None:
            super().showsyntaxerror(filename, running_compiled_code)


class _NoSubshells:
    """Replaces ipykernel's shell channel thread. A top-level await reads its attribute `parent_thread`."""

    def __init__(self) -> None:
        self.parent_thread = threading.current_thread()

    def __bool__(self) -> bool:
        return False


KERNEL_NAME = "python3"
"""The kernel's name in the connection file: Jupyter's server shows only kernels with a name that it knows."""


class EngineKernel(IPythonKernel):
    """The kernel. Cells of a console run between tasks and under the same lock."""

    shell_class = Type(EngineShell)
    compiler_class = Type(BoundedCompiler)

    before_cell: Callable[[], None] = staticmethod(lambda: None)
    """Called when a cell of a console begins."""
    after_cell: Callable[[], None] = staticmethod(lambda: None)
    """Called when a cell of a console has ended."""

    @property
    def _supports_kernel_subshells(self) -> bool:
        return bool(self.shell_channel_thread)

    async def do_execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.before_cell()
        try:
            return cast("dict[str, Any]", await super().do_execute(*args, **kwargs))
        finally:
            self.after_cell()

    async def poll_stopped_queue(self) -> None:
        """Do nothing: there is no debugger."""


class EngineApp(IPKernelApp):
    """Builds kernel, sockets and streams."""

    kernel_class = Type(EngineKernel, klass="ipykernel.kernelbase.Kernel")  # type: ignore[assignment]

    def initialize(self, argv: list[str] | None = None) -> None:
        """Initialise like `IPKernelApp.initialize`, without the parts that the module's docstring names."""
        given = os.environ.get("MPLBACKEND")
        self.init_crash_handler()
        self.init_pdb()
        self.init_connection_file()
        self.init_sockets()
        self.init_heartbeat()
        self.write_connection_file()
        self._ports = {name: getattr(self, f"{name}_port") for name in ("shell", "iopub", "stdin", "hb", "control")}
        self.init_io()
        self.init_signal()
        self.init_kernel()
        self.init_shell()
        self.init_gui_pylab()
        keep_to_matplotlib("MPLBACKEND", given)
        self.init_extensions()

    def write_connection_file(self, **kwargs: Any) -> None:
        ports = {name: getattr(self, name) for name in port_names}
        write_connection_file(
            self.abs_connection_file,
            ip=self.ip,
            key=self.session.key,
            transport=self.transport,
            kernel_name=KERNEL_NAME,
            **ports,
        )

    def init_iopub(self, context: Any) -> None:
        self.iopub_socket = publisher(context)
        self.iopub_port = self._bind_socket(self.iopub_socket, self.iopub_port)
        self.configure_tornado_logger()
        self.iopub_thread = IOPubThread(self.iopub_socket, pipe=False, session=self.session)
        # ipykernel looks for pipes of dead threads; every 10 s this would be the only wake-up of an idle engine.
        self.iopub_thread._event_pipe_gc_seconds = 300.0
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def init_control(self, context: Any) -> None:
        super().init_control(context)
        self.shell_channel_thread.io_loop.close(all_fds=True)
        self.shell_channel_thread = _NoSubshells()

    def init_signal(self) -> None:
        # Not SIG_IGN, which children would inherit.
        signal.signal(signal.SIGINT, _ignore)

    def start(self) -> None:
        """Run until the loop is stopped."""
        self.kernel.start()
        self.io_loop = ioloop.IOLoop.current()
        self.io_loop.start()


def _ignore(signum: int, frame: object) -> None:
    """Do nothing on SIGINT in an idle engine. ipykernel installs the usual handler while a cell runs."""


def make_app(connection_file: str, folder: str) -> EngineApp:
    """Return a kernel application that is initialised but not started, in an event loop of its own.

    Args:
        connection_file: the path of the connection file to write. The ipc sockets are beside it.
        folder: the folder for IPython's profile, which all engines of an agent share.
    """
    asyncio.set_event_loop(asyncio.new_event_loop())
    with _ipython_folder(Path(folder)):
        return _made(connection_file, folder)


def _made(connection_file: str, folder: str) -> EngineApp:
    app = EngineApp.instance(
        connection_file=connection_file,
        transport="ipc",
        ip=str(Path(connection_file).with_suffix("")),
        connection_dir=folder,
        outstream_class=f"{TaskStream.__module__}.{TaskStream.__qualname__}",
        # The user's own is not used, because its start-up files are for people at a prompt.
        profile_dir=ProfileDir(location=str(Path(folder) / "profile")),
        config=Config(HistoryManager={"enabled": False}),
        log_level=40,
    )
    app.initialize()
    return app


@contextlib.contextmanager
def _ipython_folder(folder: Path) -> Iterator[None]:
    """Use the user's own IPython folder, for its extensions, or one below `folder` if that cannot be used.

    IPython itself would make one in /tmp for each engine.
    """
    given = os.environ.get("IPYTHONDIR")
    try:
        usable = is_usable(Path(given or "~/.ipython").expanduser())
    except RuntimeError:
        usable = False  # the user has no home
    if not usable:
        os.environ["IPYTHONDIR"] = str(folder / "ipython")
    try:
        yield
    finally:
        if not usable and given is None:
            del os.environ["IPYTHONDIR"]
        elif not usable and given is not None:
            os.environ["IPYTHONDIR"] = given


_MAGIC = re.compile(r"get_ipython\(\)\.run_(line|cell)_magic\('([^']+)'")


class CellPlan(NamedTuple):
    """A cell in the form in which IPython will run it."""

    code: str
    transformed: str
    complaint: tuple[Any, Any, Any] | None
    """The exception that one of the user's transformations raised."""
    is_async: bool
    """Whether it has a top-level await and must be awaited in the kernel's loop."""
    place: CellPlace | None = None
    """The user's cell, which tracebacks name."""


class Cells:
    """Runs code through the shell like a notebook's cell, and raises the cell's error."""

    def __init__(self, shell: EngineShell) -> None:
        self._shell: Any = shell

    def plan(self, code: str, place: CellPlace | None = None) -> CellPlan:
        """Analyse the code without running it. Call this where nothing can be interrupted.

        place: the user's cell in which the code stands.
        """
        complaint = None
        transformed = code
        try:
            transformed = self._shell.transform_cell(code)
        except Exception:  # IPython reports it as the cell's own error
            complaint = sys.exc_info()
        self._load_magics(transformed)
        is_async = self._shell.should_run_async(code, transformed_cell=transformed, preprocessing_exc_tuple=complaint)
        return CellPlan(code, transformed, complaint, bool(is_async), place)

    def run(self, plan: CellPlan, store_history: bool = False) -> Any:
        """Run a cell without awaits, and return IPython's ExecutionResult."""
        self._set_quiet(plan)
        self._shell.compile.place = plan.place
        try:
            result = self._shell.run_cell(plan.code, store_history=store_history)
        finally:
            self._forget(store_history)
        return _checked(result)

    async def run_in_loop(self, plan: CellPlan, store_history: bool = False) -> Any:
        """Run a cell that may await. The caller holds the kernel's lock."""
        shell = self._shell
        self._set_quiet(plan)
        shell.compile.place = plan.place
        result = None
        try:
            result = await shell.run_cell_async(
                plan.code,
                store_history=store_history,
                transformed_cell=plan.transformed,
                preprocessing_exc_tuple=plan.complaint,
            )
        finally:
            shell.events.trigger("post_execute")
            shell.events.trigger("post_run_cell", result)
            self._forget(store_history)
        return _checked(result)

    def _load_magics(self, transformed: str) -> None:
        """Load the magics of the cell beforehand.

        IPython (9.18) loads some magics at their first use. If an interrupt comes then, the magic stays broken for the
        engine's whole life.
        """
        for kind, name in _MAGIC.findall(transformed):
            with contextlib.suppress(Exception):  # the cell itself will report it
                self._shell.magics_manager.find(kind, name)

    def show(self, value: object) -> None:
        """Show the value of a last expression."""
        self._shell.displayhook.show_in(value)

    def flush_figures(self) -> None:
        """Draw and close the open figures, as after a cell."""
        self._shell.events.trigger("post_execute")

    def _set_quiet(self, plan: CellPlan) -> None:
        self._shell.displayhook.quiet_task = ";" in plan.code and plan.complaint is None and is_quiet(plan.transformed)

    def _forget(self, store_history: bool) -> None:
        """Drop IPython's last result, with which IPython would keep an error, its frames and the values in them."""
        if not store_history:
            self._shell.last_execution_result = None
        self._shell.compile.place = None
        self._shell.payload_manager.clear_payload()


def _checked(result: Any) -> Any:
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        raise error
    return result
