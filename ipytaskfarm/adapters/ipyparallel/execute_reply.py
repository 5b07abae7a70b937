"""`CellReply`: the result of ``view.execute`` on one engine."""

from __future__ import annotations

from typing import Any

from ipytaskfarm.adapters.ipyparallel.messages import Metadata
from ipytaskfarm.client.engine_answers import EngineAnswer

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
