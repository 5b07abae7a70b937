"""Verdicts of depend and locality functions on engines, and the functions with stored code."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..limits import PAYLOAD_BYTES
from ..messages.task_types import LARGE_CODE_SENT, SENT_AGAIN_BYTES, Function, Incarnation, Rules, code_of
from ..saves import DropFunctions, SaveFunction
from .clients import OpenQuestions
from .decision import Decision
from .entries import EngineEntry


def locality_key(digest: str) -> str:
    """Return the key of a locality function: the same function may be a depend function too."""
    return f"locality {digest}"


@dataclass(slots=True)
class FunctionVerdicts:
    """The verdicts of one depend or locality function."""

    digest: str
    scored: bool = False
    """Whether it is a locality function."""
    session: str = ""
    """The session whose task needed it first."""
    verdicts: dict[Incarnation, tuple[int, bool, str, int]] = field(default_factory=dict)
    """Engine -> (version of its properties, whether it fits, error, score)."""
    asked: dict[Incarnation, int] = field(default_factory=dict)
    """Engine -> the version of its properties for which the evaluator was asked."""
    again_s: float | None = None
    """When (monotonic) the verdicts that were errors are asked for again."""


@dataclass(slots=True)
class PendingCheck:
    """A client's `CheckTask` that waits for the verdicts of functions."""

    session: str
    n: int
    rules: Rules | None


@dataclass(slots=True)
class FunctionRegistry:
    """The functions of tasks: those with stored code, and those that judge engines."""

    stored: set[str] = field(default_factory=set)
    """Digests of the functions with code in the store."""
    held: dict[str, dict[str, None]] = field(default_factory=dict)
    """Client's session -> the large functions that it has sent last: it may not send them again."""
    by_key: dict[str, FunctionVerdicts] = field(default_factory=dict)
    """Digest of a depend function, or `locality_key` of a locality function -> its verdicts."""
    undecided: dict[tuple[str, bool], str] = field(default_factory=dict)
    """(digest, whether it is a locality function) of tasks that came back to their queues in this turn -> the session
    of such a task."""
    checks: list[PendingCheck] = field(default_factory=list)
    open_checks: OpenQuestions = field(default_factory=OpenQuestions)
    """The clients of `checks`."""

    def save(self, functions: list[Function], out: Decision, session: str = "") -> dict[str | None, int]:
        """Save code that the store does not have. If two codes have one digest, the first one stays.

        session: the client that has sent it.

        Returns digest -> bytes of the large ones."""
        large: dict[str | None, int] = {}
        for function in functions:
            if len(function.code) >= PAYLOAD_BYTES:
                large[function.digest] = len(function.code)
            if function.digest not in self.stored:
                self.stored.add(function.digest)
                out.saves.append(SaveFunction(function.digest, function.code))
            if session and len(function.code) > SENT_AGAIN_BYTES:
                held = self.held.setdefault(session, {})
                held[function.digest] = None
                if len(held) > 2 * LARGE_CODE_SENT:
                    del held[next(iter(held))]
        return large

    def drop(self, digests: list[str], out: Decision) -> None:
        """Forget code that no task needs, unless a client counts on it."""
        needed = {digest for check in self.checks for digest in code_of(None, check.rules)}.union(*self.held.values())
        unneeded = [digest for digest in digests if digest in self.stored and digest not in needed]
        self.stored.difference_update(unneeded)
        for digest in unneeded:
            self.by_key.pop(digest, None)
            self.by_key.pop(locality_key(digest), None)
        if unneeded:
            out.saves.append(DropFunctions(unneeded))

    def verdict_of(self, engine: EngineEntry, key: str) -> tuple[int, bool, str, int] | None:
        """Return a function's verdict on an engine with its present properties; None if there is none yet."""
        function = self.by_key.get(key)
        verdict = function.verdicts.get(engine.name) if function is not None else None
        return verdict if verdict is not None and verdict[0] == engine.version else None

    def score_of(self, engine: EngineEntry, digest: str) -> int:
        """Return a locality function's score of this engine; 0 if there is none yet."""
        verdict = self.verdict_of(engine, locality_key(digest))
        return verdict[3] if verdict is not None else 0
