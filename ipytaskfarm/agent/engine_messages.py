"""Passes the engines' messages on. Tasks run in engines, so each message is one that a task may have made.

An engine speaks only for itself, and its messages are such that the controller can read them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from ..core import messages as m
from ..core.limits import PROPERTIES_BYTES, properties_bytes
from ..core.messages.blob_chunks import KeepBlob, WantBlob
from ..core.messages.running_task import Declined, ItemsLeft, ProgressReport, Spawn, TaskCall, TaskReply
from ..core.messages.task_types import FrozenRun, Incarnation, Rules
from ..transport.lane import AgentLane
from .engines import GONE, ManagedEngine
from .relay import Relay

log = logging.getLogger(__name__)

NESTED_MAX = 50
"""How deep the recovery tasks of a child may be nested: every level more is one in the messages that have it."""
TEXT_MAX = 2000


class EngineMessages:
    """Takes the engines' messages and passes them on."""

    def __init__(
        self, relay: Relay, lane: AgentLane, want: Callable[[Incarnation, WantBlob | KeepBlob], object]
    ) -> None:
        """Create it; `want` is called for engines that wait for a blob."""
        self._relay = relay
        self._lane = lane
        self._want = want

    def handle(self, engine: ManagedEngine, message: m.FromEngine) -> None:
        """Handle a message that came from an engine."""
        if engine.phase is GONE and not isinstance(message, m.Returned | m.CommandDone):
            return
        if getattr(message, "engine", None) not in (None, engine.incarnation):
            log.warning("engine %d has sent a %s for another engine: dropped", engine.id, type(message).__name__)
            return
        match message:
            case m.LaneHello():
                if not engine.hello.done():
                    engine.hello.set_result(message)
            case m.Returned():
                self._relay.give_back(engine.account, message)
            case m.CommandDone() | ItemsLeft():
                self._relay.keep(message, engine.account)
            case m.PropertiesChanged():
                self._take_properties(engine, message)
            case m.SetUp():
                engine.set_up = not message.error
                self._relay.forward(engine.incarnation, message)
            case m.Frozen():
                engine.frozen = _bounded(message.run)
                self._relay.forward(engine.incarnation, m.Frozen(message.engine, engine.frozen))
            case WantBlob() | KeepBlob():
                self._want(engine.incarnation, message)
            case TaskCall():
                self._pass_call(engine, message)
            case m.EngineNote() | m.OutputText() | m.ResourceRequest() | ProgressReport():
                self._relay.forward(engine.incarnation, message)

    def _take_properties(self, engine: ManagedEngine, message: m.PropertiesChanged) -> None:
        size = properties_bytes(message.packed, message.plain)
        if size > PROPERTIES_BYTES:
            log.warning("engine %d has sent properties of %d bytes: dropped", engine.id, size)
            return
        engine.properties = message
        self._relay.forward(engine.incarnation, message)

    def _pass_call(self, engine: ManagedEngine, call: TaskCall) -> None:
        if isinstance(call.question, Spawn) and any(_is_nested(made.rules) for made in call.question.tasks):
            declined = Declined("TaskError", f"recovery tasks are nested more than {NESTED_MAX} deep: use fewer")
        elif why := self._relay.forward(engine.incarnation, call):
            declined = Declined("ResultTooLarge", why)
        else:
            return
        self._lane.send(engine.incarnation, TaskReply(engine.incarnation, call.run, call.n, declined))


def _is_nested(rules: Rules | None) -> bool:
    """Return whether a task's recovery tasks are nested too deeply."""
    for _ in range(NESTED_MAX):
        if rules is None or rules.recovery is None:
            return False
        rules = rules.recovery.rules
    return True


def _bounded(run: FrozenRun) -> FrozenRun:
    """Return what is told of a failed run with short texts: it is repeated in each `AgentState`."""
    return msgspec.structs.replace(run, error=run.error[:TEXT_MAX], place=run.place[:TEXT_MAX])
