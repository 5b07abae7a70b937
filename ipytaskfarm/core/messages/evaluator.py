"""Messages between controller and evaluator: users' depend and locality functions, and their verdicts on engines.

The functions are user code and never run in the controller, see `controller.evaluator_process`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .task_types import Incarnation


class Subject(msgspec.Struct, frozen=True):
    """An engine to be judged: its facts, and its properties, still packed."""

    engine: Incarnation
    version: int
    facts: dict[str, Any]
    packed: bytes = b""


class Evaluate(msgspec.Struct, frozen=True, tag=True):
    """Call a depend or locality function on each of these engines.

    `code` comes with the first question about a digest."""

    n: int
    depend: str
    subjects: list[Subject]
    code: bytes | None = None
    scored: bool = False
    """Whether it is a locality function: its value counts, not only whether it is true."""
    session: str = ""
    """The session whose task needed this function first: sessions take turns."""


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """A function's verdict on an engine. `error` is the reason, for people, why it is False."""

    engine: Incarnation
    version: int
    fits: bool
    error: str = ""
    score: int = 0


class Evaluated(msgspec.Struct, frozen=True, tag=True):
    """The answer to the `Evaluate` of that number."""

    n: int
    depend: str
    verdicts: list[Verdict]
    scored: bool = False
