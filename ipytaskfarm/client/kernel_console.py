"""Run a cell on an existing kernel, and pass on what it prints and what it asks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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
