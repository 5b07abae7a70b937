"""Open the engines that were frozen for failed tasks: their frames in a debugger here, or in JupyterLab.

A frozen engine is an IPython kernel.  `debug_frozen` asks it for its debugger and passes on what is typed.  Its
connection file also gets a link in the folder in which Jupyter's server looks for kernels that others have started.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
import weakref
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from ..core.errors import TaskFarmError
from ..core.messages import ExchangeBytes, KernelBytes, ListEngines, ListTasks, ReadTask, TaskCopy, tables
from ..core.messages.kernel_bytes import PIECE_BYTES
from ..core.states import FREEZES
from ..display.farm_tables import frozen_table
from ..display.ipython import show_users_frames
from ..display.text import local_time
from ..system import jupyter_extension
from ..system.user_code import with_cells
from .debugging import can_ask
from .session import Session
from .tables import Listing
from .wait_notices import say

_DEBUG = "get_ipython().restore_error_of_task()\n%debug"
"""Opens the frames of the task, whatever has been raised in a console since."""


class FrozenLine(NamedTuple):
    """A frozen engine: the failed task, where it is, and until when it is kept unless it is used."""

    task: int
    attempt: int
    error: str
    place: str
    node: str
    pid: int
    until: datetime
    state: str
    connection_file: str


def frozen_engines(session: Session) -> Listing:
    """Return the frozen engines of the farm."""
    rows = [msgspec.structs.replace(row, place=with_cells(row.place)) for row in _table(session).frozen]
    found = [
        FrozenLine(
            row.task, row.attempt, row.error, row.place, row.node, row.pid,
            local_time(row.ends_s), row.state, row.connection_file,
        )
        for row in rows
    ]  # fmt: skip
    return Listing(FrozenLine._fields, found, frozen_table(rows))


def _table(session: Session) -> tables.EngineTable:
    return session.ask_for(ListEngines(), tables.EngineTable)


def debug_frozen(session: Session, task: int) -> bool:
    """Open the debugger on the engine that was frozen for a task; return whether there is one.

    Where no user can type, print how the engine is reached.  If it has ended, print why.
    """
    table = _table(session)
    close_tunnels(session, {row.engine for row in table.frozen})
    row = next((row for row in table.frozen if row.task == task), None)
    if row is None:
        note = table.thawed.get(task)
        if note is None and _asked_for_one(session, task):
            note = f"no engine is frozen for task {task}; tc.explain({task}) tells more"
        if note is not None:
            frames = f"tc.debug({task}, run=False) opens the frames that came with the failure"
            print(f"{note}\nthe task runs here instead; {frames}")
        return False
    connection_file = _kernel_of(session, row) if row.state == "frozen" else None
    if connection_file is None:
        why = f"is {row.state}" if row.state != "frozen" else "has ended"
        print(f"the engine that was frozen for task {task} on node {row.node} {why}: the task runs here")
        return False
    link = jupyter_extension.offer(connection_file, f"task-{task}-{connection_file.parent.name}-{connection_file.stem}")
    until = time.strftime("%H:%M:%S", time.localtime(row.ends_s))
    print(
        f"task {task} failed on node {row.node}, and its engine is frozen until {until}, or for as long as it is used"
    )
    print(f"in JupyterLab it is among the running kernels; in a terminal: jupyter console --existing {link}")
    if can_ask():
        _open_debugger(connection_file, task)
    return True


def _open_debugger(connection_file: Path, task: int) -> None:
    try:
        with KernelConsole(connection_file) as console:
            while console.run(_DEBUG):
                pass  # IPython's debugger of a kernel ends with a statement that is interrupted
    except KernelSilent as error:
        raise RuntimeError(
            f"the engine that is frozen for task {task} does not answer: it runs what was typed there before; "
            f"tc.release({task}) ends it"
        ) from error
    except KeyboardInterrupt as interrupt:
        show_users_frames(interrupt)
        say(f"the engine stays frozen: tc.debug({task}) opens it again, tc.release({task}) ends it")
        raise


def _asked_for_one(session: Session, task: int) -> bool:
    """Return whether a task has failed in a way that was to freeze its engine."""
    rows = session.ask_for(ListTasks([task]), tables.TaskRows).rows
    if not rows or rows[0].reason not in FREEZES:
        return False
    rules = session.ask_for(ReadTask(task), TaskCopy).task.rules
    return rules is not None and rules.freeze


def _kernel_of(session: Session, row: tables.FrozenRow) -> Path | None:
    """Return the connection file of an engine's kernel: its own, or, for another machine, one of a tunnel.

    None: the engine has ended.
    """
    there = session.ask_for(ExchangeBytes(row.engine), KernelBytes)
    if not there.data:
        return None
    own = Path(row.connection_file)
    return own if _holds(own, there.data) else tunnel_to(session, row.engine, there.data)


def _holds(path: Path, data: bytes) -> bool:
    """Return whether a file has these contents: on another machine a file of another engine may have its path."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False


READY_S = 20.0
"""How long (seconds) a kernel may take for its first answer."""
LOOK_S = 0.05
"""Seconds to wait for output before the console looks for questions."""


class KernelSilent(Exception):
    """A kernel does not answer: its process is gone, or it runs a cell."""


class KernelConsole:
    """A connection to one kernel."""

    def __init__(self, connection_file: Path) -> None:
        """Connect.

        Raises:
            KernelSilent: the kernel does not answer.
        """
        from jupyter_client.blocking.client import BlockingKernelClient  # it costs 0.1 s

        self._client: Any = BlockingKernelClient(connection_file=str(connection_file))
        self._client.load_connection_file()
        self._question: dict[str, Any] | None = None
        self._client.start_channels()
        try:
            self._client.wait_for_ready(READY_S)
        except BaseException as error:
            self._client.stop_channels()
            if type(error) is RuntimeError:
                raise KernelSilent(*error.args) from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.stop_channels()

    def run(self, code: str) -> bool:
        """Run a cell to its end; its questions are asked here, and its output is printed here.

        Ctrl-C, and the end of the input, answer a question with "quit".  While the kernel works, Ctrl-C interrupts it.
        If it does not come back, a second one leaves it: KeyboardInterrupt.

        Returns: whether an interrupt has ended the cell.
        """
        asked: str = self._client.execute(code, allow_stdin=True, store_history=False)
        self._question = None
        is_interrupted = False
        is_over = False
        while not is_over:
            try:
                is_over, answered = self._pass_on(asked)
            except KeyboardInterrupt:
                if is_interrupted:
                    raise
                is_interrupted = True
                self._interrupt()
            else:
                is_interrupted = is_interrupted and not answered
        return is_interrupted

    def _pass_on(self, asked: str) -> tuple[bool, bool]:
        """Pass on the next message, or question; return (the cell has ended, a question was asked)."""
        message = _next(self._client.iopub_channel)
        if message is not None:
            return message["parent_header"].get("msg_id") == asked and not _shown(message), False
        question, self._question = self._question, None
        if question is not None:  # what was printed before the question is shown first
            self._answer(question)
            return False, True
        self._question = _next(self._client.stdin_channel)
        return False, False

    def _interrupt(self) -> None:
        channel = self._client.control_channel
        channel.send(self._client.session.msg("interrupt_request", content={}))

    def _answer(self, question: dict[str, Any]) -> None:
        try:
            text = input(question["content"]["prompt"])
        except (EOFError, KeyboardInterrupt):
            text = "quit"
        self._client.input(text)


def _next(channel: Any) -> dict[str, Any] | None:
    """Return the next message of a channel; None if none comes for a moment."""
    from queue import Empty

    try:
        found: dict[str, Any] = channel.get_msg(timeout=LOOK_S)
    except Empty:
        return None
    return found


def _shown(message: dict[str, Any]) -> bool:
    """Print the output of a message; return False if the cell has ended."""
    content = message["content"]
    match message["msg_type"]:
        case "stream":
            target = sys.stdout if content["name"] == "stdout" else sys.stderr
            target.write(content["text"])
            target.flush()
        case "execute_result" | "display_data":
            print(content["data"].get("text/plain", ""))
        case "error":
            print("\n".join(content["traceback"]))
        case "status":
            return bool(content["execution_state"] != "idle")
    return True


CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
ANSWER_S = 30.0
"""How long (seconds) an answer may take before a stream is given up."""


class KernelTunnel:
    """The sockets and the connection file of one kernel, as long as this process and the engine live.

    Each connection to one of these sockets is a stream of bytes through the farm: client, controller, agent, kernel. So
    Jupyter and its consoles find a kernel as if the engine were here.
    """

    def __init__(self, session: Session, engine: str, connection: bytes) -> None:
        """Open the sockets; connection: the contents of the engine's connection file."""
        self.session = session
        self._engine = engine
        self._folder = Path(tempfile.mkdtemp(prefix="ipytaskfarm-kernel-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        info = {**json.loads(connection), "ip": str(self._folder / "kernel"), "transport": "ipc"}
        self._listening = []
        for channel in CHANNELS:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(f"{info['ip']}-{info[f'{channel}_port']}")
            listener.listen(16)
            self._listening.append(listener)
            self._start(self._accept, listener, channel)
        session.at_close.append(self.close)
        self.connection_file = self._folder / "kernel.json"
        self.connection_file.write_text(json.dumps(info))
        self.connection_file.chmod(0o600)

    def _start(self, function: object, *args: object) -> None:
        threading.Thread(target=function, args=args, name="kernel tunnel", daemon=True).start()  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the sockets, and remove them."""
        for listener in self._listening:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._remove()

    def _ask(self, question: ExchangeBytes) -> KernelBytes:
        reply = self.session.ask(question, ANSWER_S)
        return reply if isinstance(reply, KernelBytes) else KernelBytes(b"", True)

    def _accept(self, listener: socket.socket, channel: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                stream = uuid.uuid4().hex
                self._start(self._send, connection, stream, channel)
                self._start(self._receive, connection, stream, channel)

    def _send(self, connection: socket.socket, stream: str, channel: str) -> None:
        """Pass on what comes from here to the kernel."""
        at = 0
        with contextlib.suppress(OSError, TaskFarmError, TimeoutError):
            while data := connection.recv(PIECE_BYTES):
                if self._ask(ExchangeBytes(self._engine, stream, channel, at, data)).closed:
                    break
                at += len(data)
            self._ask(ExchangeBytes(self._engine, stream, channel, close=True))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _receive(self, connection: socket.socket, stream: str, channel: str) -> None:
        """Pass on what comes from the kernel; when it has ended, the sockets are closed with it."""
        seen = 0
        with contextlib.suppress(OSError, TaskFarmError, TimeoutError):
            while True:
                reply = self._ask(ExchangeBytes(self._engine, stream, channel, seen=seen, wait=True))
                connection.sendall(reply.data)
                seen += len(reply.data)
                if reply.closed:
                    break
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


_tunnels: dict[str, KernelTunnel] = {}
"""Engine -> its tunnel in this process."""


def tunnel_to(session: Session, engine: str, connection: bytes) -> Path:
    """Return the connection file of a kernel that is reached through the farm; the first call opens its sockets."""
    known = _tunnels.get(engine)
    if known is None or not known.connection_file.exists():
        known = _tunnels[engine] = KernelTunnel(session, engine, connection)
    return known.connection_file


def close_tunnels(session: Session, living: set[str]) -> None:
    """Close the tunnels of a session to engines that are not among these."""
    for engine, tunnel in list(_tunnels.items()):
        if tunnel.session is session and engine not in living:
            del _tunnels[engine]
            tunnel.close()
