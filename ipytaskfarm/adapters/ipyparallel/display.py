"""Show the output of calls as ipyparallel does: ``[stdout:0]``, ``[output:0]``, ``Out[0:3]:``."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from ipytaskfarm.adapters.ipyparallel.errors import CompositeError
from ipytaskfarm.adapters.ipyparallel.messages import CommandMessage, MessageFuture, Metadata
from ipytaskfarm.client.commands import PendingResult
from ipytaskfarm.client.engine_answers import EngineAnswer
from ipytaskfarm.client.output_printer import SeenOutput, rest_of
from ipytaskfarm.client.progress import CountedWork, ProgressDisplay
from ipytaskfarm.core.messages import Output
from ipytaskfarm.display.ipython import user_shell

MIMES = {
    "_repr_html_": "text/html", "_repr_latex_": "text/latex", "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript", "_repr_png_": "image/png", "_repr_jpeg_": "image/jpeg",
    "_repr_svg_": "image/svg+xml", "_repr_markdown_": "text/markdown",
}  # fmt: skip
"""IPython's display methods, and the mime type that each returns."""


class CellReply:
    """The result of code on one engine, ipyparallel's ``ExecuteReply``: it is shown as ``Out[engine:number]: …``.

    Metadata (``stdout``, ``outputs`` …) are attributes.
    """

    def __init__(self, execution_count: int, metadata: Metadata) -> None:
        self.execution_count = execution_count
        self.metadata = metadata

    @classmethod
    def of_output(cls, output: dict[str, Any], engine: int) -> CellReply:
        """Return the reply for the value of an expression that a command has shown."""
        metadata = Metadata()
        metadata.update(engine_id=engine, execute_result=output)
        return cls(output["execution_count"], metadata)

    @property
    def data(self) -> dict[str, Any]:
        """Return the value by mime type; {} if the code had none."""
        shown = self.metadata["execute_result"]
        return shown["data"] if shown else {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CellReply):
            return NotImplemented
        own, others = self.metadata, other.metadata
        return (self.execution_count, own["msg_id"], self.data) == (other.execution_count, others["msg_id"], other.data)

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Any:
        return self.metadata[name]

    def __getattr__(self, name: str) -> Any:
        if name in MIMES:
            return lambda: self._of_mime(MIMES[name])
        if name.startswith("_") or name not in self.metadata:
            raise AttributeError(name)
        return self.metadata[name]

    def _of_mime(self, mime: str) -> Any:
        if mime not in self.data:
            return None
        details = (self.metadata["execute_result"].get("metadata") or {}).get(mime)
        return self.data[mime] if details is None else (self.data[mime], details)

    def __repr__(self) -> str:
        text = self.data.get("text/plain", "")
        return f"<ExecuteReply[{self.execution_count}]: {text if len(text) <= 32 else text[:29] + '...'}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = dict(self.data)
        if "text/plain" in data:
            data["text/plain"] = self._plain()
        details = self.metadata["execute_result"].get("metadata") if self.metadata["execute_result"] else None
        return data, details or {}

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self._plain())

    def _plain(self) -> str:
        text = self.data.get("text/plain", "")
        if not text:
            return ""
        rest = f"\n{text}" if "\n" in text and not text.startswith("\n") else text
        return f"Out[{self.metadata['engine_id']}:{self.execution_count}]: {rest}"


def executed(is_silent: bool) -> Any:
    """Return the function that reads the answer to an execution; is_silent: without the value of its expression."""

    def read(answer: EngineAnswer, metadata: Metadata) -> CellReply:
        found = answer.value
        shown = found["display"]
        values = [output for output in shown if "execution_count" in output]
        metadata["execute_result"] = values[-1] if values and not is_silent else None
        metadata["execute_input"] = found["input"]["raw"]
        metadata["outputs"] = [output for output in shown if "execution_count" not in output]
        return CellReply(found["number"], metadata)

    return read


def progress_of(total: int, ended: Callable[[], int], name: str) -> ProgressDisplay:
    """Return the display of a wait for calls; ended: returns how many have ended."""
    return ProgressDisplay(CountedWork(lambda: total, ended), "tasks", name=name)


class Streams:
    """Writes texts to stdout and stderr, each text behind a line that names its engine."""

    def __init__(self) -> None:
        self._prefix = ""
        self._line_ended = True

    def write(self, text: str, prefix: str = "", file: TextIO | None = None) -> None:
        """Write a text; the prefix is written if it differs from that of the last text."""
        if not text:
            return
        head = ""
        if prefix and prefix != self._prefix:
            head = f"{'' if self._line_ended else chr(10)}{prefix}\n"
            self._prefix = prefix
        self._line_ended = text.endswith("\n")
        print(f"{head}{text}", file=file or sys.stdout, end="")

    def both(self, engine: int, stdout: str, stderr: str) -> None:
        """Write the output of an engine."""
        self.write(stdout, f"[stdout:{engine}] ")
        self.write(stderr, f"[stderr:{engine}] ", sys.stderr)


def publish(output: dict[str, Any], engine: int, headed: bool = True) -> None:
    """Show a display of an engine in IPython; outside IPython displays have no meaning."""
    if headed:
        _head(engine)
    _publish(output["data"], {**(output.get("metadata") or {}), "engine": engine})


def _publish(data: dict[str, Any], metadata: dict[str, Any]) -> None:
    shell = user_shell()
    if shell is not None:
        shell.display_pub.publish(data=data, metadata=metadata)


def _head(engine: int) -> None:
    _publish({"text/plain": f"[output:{engine}]"}, {})


def show_value(value: Any) -> None:
    """Show the value of an expression in IPython."""
    shell = user_shell()
    if shell is not None:
        _publish(*shell.display_formatter.format(value))


def show_outputs(children: Sequence[MessageFuture], is_single: bool, groupby: str, result_only: bool) -> None:
    """Show the output of ended calls; see ``AsyncResult.display_outputs``.

    is_single: the call is not one of a list of calls.
    """
    shown = _Shown(children)
    if is_single:
        shown.single(result_only)
    elif groupby == "engine":
        shown.by_engine(result_only)
    elif groupby in ("type", "order"):
        shown.by_type(groupby == "order", result_only)
    else:
        raise ValueError(f"groupby must be one of 'type', 'engine', 'collate', not {groupby!r}")


class _Shown:
    """Shows the output of ended calls."""

    def __init__(self, children: Sequence[MessageFuture]) -> None:
        self._children = children
        self._streams = Streams()

    def single(self, result_only: bool) -> None:
        (child,) = self._children
        if not result_only:
            self._streams.write(child.metadata["stdout"])
            self._streams.write(child.metadata["stderr"], file=sys.stderr)
            for output in child.metadata["outputs"]:
                publish(output, child.metadata["engine_id"], headed=False)
        self._value(child)

    def by_engine(self, result_only: bool) -> None:
        for child in self._children:
            if not result_only:
                data = child.metadata
                self._streams.both(data["engine_id"], data["stdout"], data["stderr"])
            if (child.metadata["outputs"] and not result_only) or child.metadata["execute_result"] is not None:
                _head(child.metadata["engine_id"])
            if not result_only:
                for output in child.metadata["outputs"]:
                    publish(output, child.metadata["engine_id"], headed=False)
            self._value(child)

    def by_type(self, collated: bool, result_only: bool) -> None:
        if not result_only:
            for child in self._children:
                self._streams.write(child.metadata["stdout"], f"[stdout:{child.metadata['engine_id']}] ")
            for child in self._children:
                self._streams.write(child.metadata["stderr"], f"[stderr:{child.metadata['engine_id']}] ", sys.stderr)
            if collated:
                self._collated()
            else:
                self._displays()
        for child in self._children:
            self._value(child)

    def _displays(self) -> None:
        for child in self._children:
            if child.metadata["outputs"]:
                _head(child.metadata["engine_id"])
            for output in child.metadata["outputs"]:
                publish(output, child.metadata["engine_id"], headed=False)

    def _collated(self) -> None:
        for number in range(max((len(child.metadata["outputs"]) for child in self._children), default=0)):
            for child in self._children:
                if number < len(child.metadata["outputs"]):
                    publish(child.metadata["outputs"][number], child.metadata["engine_id"])

    def _value(self, child: MessageFuture) -> None:
        if child.metadata["execute_result"] is not None and child.exception() is None:
            show_value(child.result())


# -- while the call runs


@contextlib.contextmanager
def streaming(children: Sequence[MessageFuture]) -> Iterator[None]:
    """Show the output of a call while it runs, and its errors and values when they arrive."""
    printer = StreamPrinter(children)
    followed = {id(child.pending): child.pending for child in children if isinstance(child, CommandMessage)}
    threads = [
        threading.Thread(target=_follow, args=(pending, printer), name="ipytaskfarm output", daemon=True)
        for pending in followed.values()
        if pending is not None
    ]
    for thread in threads:
        thread.start()
    try:
        yield
        if all(child.done() for child in children):
            for thread in threads:
                thread.join()
            if not threads:
                printer.show_ended()
    finally:
        printer.is_muted = True


def _follow(pending: PendingResult, printer: StreamPrinter) -> None:
    # The connection may be closed while the call goes on: then nobody looks at its output any more.
    with contextlib.suppress(ConnectionError):
        pending.stream(printer=printer)


class StreamPrinter:
    """Shows the output of a call that runs: text as it arrives, and the rest when an engine has answered."""

    def __init__(self, children: Iterable[MessageFuture]) -> None:
        self.is_muted = False
        self._streams = Streams()
        self._children = list(children)
        self._engines = {str(child.metadata["engine_id"]): child for child in self._children}
        self._shown: dict[str, int] = {}
        self._errors = 0

    def take(self, label: str, seen: SeenOutput, output: Output) -> None:
        """Show new output of an engine."""
        if self.is_muted:
            return
        seen.note(output)
        self._streams.both(int(label), output.stdout, output.stderr)
        for place, shown in seen.decoded(output):
            self._display(label, place, shown)

    def rest(self, label: str, seen: SeenOutput, stdout: str, stderr: str, outputs: Iterable[dict[str, Any]]) -> None:
        """Show the output of an engine that was not shown yet, and its error."""
        if self.is_muted:
            return
        self._streams.both(int(label), rest_of(stdout, seen.chars[0]), rest_of(stderr, seen.chars[1]))
        for place, shown in enumerate(outputs):
            self._display(label, place, shown)
        self._end(self._engines.get(label))

    def show_ended(self) -> None:
        """Show the output of tasks, which is known at their end."""
        for child in self._children:
            data = child.metadata
            self._streams.both(data["engine_id"], data["stdout"], data["stderr"])
            for output in data["outputs"]:
                publish(output, data["engine_id"])
            self._end(child)

    def end_old_lines(self, label: str, seen: SeenOutput) -> None:
        """Do nothing: unfinished lines are shown at once."""

    def end_lines(self, label: str, seen: SeenOutput) -> None:
        """Do nothing: unfinished lines are shown at once."""

    def show(self, is_over: bool = False) -> None:
        """Do nothing: output is shown at once."""

    def _display(self, label: str, place: int, output: dict[str, Any]) -> None:
        if place < self._shown.get(label, 0):
            return
        self._shown[label] = place + 1
        if "execution_count" in output:
            show_value(CellReply.of_output(output, int(label)))
        else:
            publish(output, int(label))

    def _end(self, child: MessageFuture | None) -> None:
        error = None if child is None else child.exception()
        if error is None:
            return
        self._errors += 1
        if self._errors <= CompositeError.tb_limit and hasattr(error, "render_traceback"):
            print("\n".join(error.render_traceback()), file=sys.stderr)
        else:
            print(error, file=sys.stderr)
