"""Large values for machines that do not see the farm's folder: the shell reads them, beside its turns."""

from __future__ import annotations

from ..decision import Decision, ReadPiece
from ..farm import Farm, Now
from ..pieces import ReadBlob


def on_ask_for_blob(farm: Farm, session: str, n: int, question: ReadBlob, now: Now, out: Decision) -> None:
    """A client wants to look at a large result."""
    out.reads.append(ReadPiece(session, n, question.digest, question.offset))


def on_read_blob(farm: Farm, session: str, event: ReadBlob, now: Now, out: Decision) -> None:
    """An agent brings a large value to its node."""
    out.reads.append(ReadPiece(session, None, event.digest, event.offset))
