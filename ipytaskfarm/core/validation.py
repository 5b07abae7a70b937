"""Validation of agents' messages: whether the agent may send the message, and whether the values are within bounds.

An agent is enrolled but not trusted. It may report on the engines of its own session (or of former sessions in its
folder), never on another's. Its reports can neither make anyone else's memory or time unbounded, nor make arithmetic of
the scheduler fail. A message that the agent may not send is dropped, and counted in `Diagnostics.dropped`. Extreme
numbers and texts are cut. Messages of honest agents pass unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from math import isfinite
from operator import attrgetter, is_not
from typing import Any, TypeAlias

import msgspec
from msgspec.msgpack import encode
from msgspec.structs import replace

from . import messages as m
from .arguments import INT_MAX, INT_MIN
from .limits import PROPERTIES_BYTES, properties_bytes
from .message_bounds import (
    may_be_long,
    readable_runs,
    why_condition_too_long,
    why_list_too_long,
    why_nodes_refused,
    why_text_too_long,
)
from .messages.kernel_bytes import PIECE_BYTES
from .messages.pages import why_too_many
from .messages.running_task import ItemsLeft, ProgressReport, TaskCall
from .messages.task_types import (
    IF_FAILED,
    Deferral,
    Ended,
    FailureSummary,
    FrozenRun,
    ItemEnd,
    ItemsEnded,
    LostInputs,
    Needs,
    Rules,
)
from .parsing import SHARED, agent_name, owner
from .requirements import OPERATORS, Allotment, Asks, Condition, Environment, Recycle
from .scheduler.agent_entry import skew_of
from .scheduler.decision import Now
from .scheduler.events import Event
from .scheduler.queue import KnownRules
from .scheduler.settings import PLACEMENTS
from .scheduler.state import SchedulerState

ENGINES_MAX = 4096
"""The most engines of one agent: four times the cores of the largest machines."""
FORMER_MAX = 64
FACTS_BYTES = 8192
NAMES_MAX = 256
TEXT_MAX = 2000
LONG_TEXT_MAX = 64 * 1024
"""The limit for the last output of a dying engine, and for stacks."""
OUTPUT_MAX = 2**20
DISPLAYS_MAX = 2 * 2**20
AMOUNT_MAX = 2.0**60
"""More than there is of any resource."""
SECONDS_MAX = 1e11
"""Three thousand years, for durations and for moments."""
NUMBER_MAX = 2**53
TEARDOWN_MAX_S = 3600.0


def validated(farm: SchedulerState, session: str, event: Event, now: Now) -> Event | None:
    """Return the event as it may be handled.  None: it is dropped.

    Events that are not agents' messages are returned unchanged."""
    check = _CHECKS.get(type(event))
    if check is None:
        return event
    checked: Event | None = check(farm, session, event, now)
    if checked is None:
        farm.diagnostics.dropped += 1
    return checked


def _speaks_for(farm: SchedulerState, session: str, engine: str) -> bool:
    of = owner(engine)
    agent = farm.agents.by_session.get(session)
    return agent is not None and (of == session or of in agent.former)


# -- an agent and its engines


def _agent_state(farm: SchedulerState, session: str, event: m.AgentState, now: Now) -> m.AgentState:
    name = agent_name(session)
    former = [s for s in event.former[-FORMER_MAX:] if agent_name(s) == name and s != session]
    engines: dict[str, m.EngineReport] = {}
    wall_s = _seconds(event.wall_s, 0.0)
    skew_s = skew_of(wall_s, now.wall_s)
    for report in event.engines:
        if len(engines) < ENGINES_MAX and (clean := _report(session, report, skew_s, now)) is not None:
            engines.setdefault(clean.engine, clean)
    farm.diagnostics.dropped += len(event.engines) - len(engines) + len(event.former[-FORMER_MAX:]) - len(former)
    return replace(
        event,
        node=_text(event.node, 200),
        cores=_within(event.cores, 1, 2**20),
        memory_bytes=_within(event.memory_bytes, 0, NUMBER_MAX),
        platform=_text(event.platform, 200),
        python=_text(event.python, 40),
        engines=list(engines.values()),
        slots=None if event.slots is None else _within(event.slots, 0, NUMBER_MAX),
        former=former,
        resources=_amounts(event.resources),
        gpus=tuple(_text(gpu, 200) for gpu in event.gpus[:NAMES_MAX]),
        utc_offset_s=_within(event.utc_offset_s, -86_400, 86_400),
        name=_own_name(name, event.name),
        brings=None if event.brings is None else _within(event.brings, 0, ENGINES_MAX),
        time_left_s=None if event.time_left_s is None else _seconds(event.time_left_s, 0.0),
        wall_s=wall_s,
        process=_process(event.process),
        left=None if event.left is None else event.left[-ENGINES_MAX * FORMER_MAX :],
    )


def _process(process: m.AgentProcess | None) -> m.AgentProcess | None:
    if process is None:
        return None
    return m.AgentProcess(
        _text(process.host, 400),
        _text(process.boot, 200),
        _text(process.namespace, 200),
        _within(process.pid, 0, NUMBER_MAX),
        _seconds(process.started_s, 0.0),
    )


def _own_name(by_key: str, reported: str) -> str:
    """Return the agent's name: the one in its key, or the one that it reports.

    This machine's own agents share a key, which has no name.
    """
    return "" if by_key == SHARED else by_key or _text(reported, 200)


def _leaving(farm: SchedulerState, session: str, event: m.Leaving, now: Now) -> m.Leaving:
    return m.Leaving(_seconds(event.within_s, 0.0))


def _engine_up(farm: SchedulerState, session: str, event: m.EngineUp, now: Now) -> m.EngineUp | None:
    agent = farm.agents.by_session.get(session)
    if agent is None or (report := _report(session, event.report, agent.skew_s, now)) is None:
        return None
    if report.engine not in agent.engines and len(agent.engines) >= ENGINES_MAX:
        return None
    return m.EngineUp(report)


def _report(session: str, report: m.EngineReport, skew_s: float, now: Now) -> m.EngineReport | None:
    """Return a checked report.  None: the engine is not of this session."""
    if owner(report.engine) != session or not 0 <= report.id <= 2**31:
        return None
    held = readable_runs(report.held)
    if held is None:
        return None
    properties = report.properties
    if properties is not None and (properties.engine != report.engine or not _is_small(properties)):
        properties = None
    return replace(
        report,
        started_s=_own_time(report.started_s, skew_s, now),
        facts=_facts(report.facts),
        held=held,
        properties=properties,
        connection_file=_text(report.connection_file, TEXT_MAX),
        finished=_within(report.finished, 0, NUMBER_MAX),
        environment=_environment(report.environment),
        holding=None if report.holding is None else (report.holding[0], _allotment(report.holding[1])),
        recycling=report.recycling[:NAMES_MAX],
        frozen=_frozen_run(report.frozen),
    )


def _facts(facts: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in facts.items() if isinstance(value, str | int | float | bool | None)}
    return plain if len(plain) <= NAMES_MAX and len(encode(plain)) <= FACTS_BYTES else {}


def _environment(environment: Environment | None) -> Environment | None:
    if environment is None or 0.0 <= environment.teardown_s <= TEARDOWN_MAX_S:
        return environment
    return replace(environment, teardown_s=TEARDOWN_MAX_S)


def _allotment(allotment: Allotment) -> Allotment:
    return replace(allotment, amounts=_amounts(allotment.amounts), gpus=allotment.gpus[:NAMES_MAX])


# -- reports about one engine

Check = Callable[[SchedulerState, str, Any, Now], Any]


def _of_engine(farm: SchedulerState, session: str, event: Any, now: Now) -> Any:
    return event if _speaks_for(farm, session, event.engine) else None


def _engine_lost(farm: SchedulerState, session: str, event: m.EngineDown, now: Now) -> m.EngineDown | None:
    if not _speaks_for(farm, session, event.engine):
        return None
    crash = event.crash
    return replace(
        event,
        crash=m.Crash(
            crash.signal,
            crash.exit_code,
            _text(crash.cause, TEXT_MAX),
            _within(crash.peak_bytes, 0, NUMBER_MAX),
            crash.output[-LONG_TEXT_MAX:],
            crash.dump[:LONG_TEXT_MAX],
        ),
    )


def _results(farm: SchedulerState, session: str, event: m.Results, now: Now) -> m.Results | None:
    agent = farm.agents.by_session.get(session)
    if agent is None or (event.engine not in agent.engines and not _speaks_for(farm, session, event.engine)):
        return None
    skew_s = agent.skew_s
    if not skew_s and all(map(_is_sound, event.ended)):
        return event
    return m.Results(
        event.engine,
        [ended if not skew_s and _is_sound(ended) else _sound(ended, skew_s, now) for ended in event.ended],
    )


def _command_done(farm: SchedulerState, session: str, event: m.CommandDone, now: Now) -> m.CommandDone | None:
    if not _speaks_for(farm, session, event.engine):
        return None
    skew_s = farm.agents.by_session[session].skew_s
    if not (skew_s and event.began_s):
        return event
    began_s, ended_s = (_own_time(time_s, skew_s, now) for time_s in (event.began_s, event.ended_s))
    return replace(event, began_s=began_s, ended_s=ended_s)


def _is_sound(ended: Ended) -> bool:
    """Return whether a result needs no correction; this is asked for each result."""
    return (
        0.0 <= ended.run_s <= SECONDS_MAX
        and 0.0 <= ended.started_s <= SECONDS_MAX
        and ended.failure is None
        and ended.detail is None
        and ended.frozen is None
        and -1 < ended.memory_bytes <= NUMBER_MAX
    )


def _sound(ended: Ended, skew_s: float, now: Now) -> Ended:
    return replace(
        ended,
        started_s=_own_time(ended.started_s, skew_s, now),
        run_s=_seconds(ended.run_s, 0.0),
        failure=None if ended.failure is None else _failure(ended.failure),
        memory_bytes=_within(ended.memory_bytes, 0, NUMBER_MAX),
        detail=_detail(ended.detail),
        frozen=_frozen_run(ended.frozen),
    )


def _items_left(farm: SchedulerState, session: str, event: ItemsLeft, now: Now) -> ItemsLeft | None:
    if not _speaks_for(farm, session, event.engine):
        return None
    return replace(event, told=[_item_end(told) for told in event.told])


def _failure(failure: FailureSummary) -> FailureSummary:
    kinds = tuple(kind[:TEXT_MAX] for kind in failure.kinds[:NAMES_MAX])
    return FailureSummary(_text(failure.etype, 200), failure.value[:LONG_TEXT_MAX], failure.place[:TEXT_MAX], kinds)


_Detail: TypeAlias = Deferral | LostInputs | ItemsEnded | None


def _detail(detail: _Detail) -> _Detail:
    if isinstance(detail, ItemsEnded):
        return replace(detail, told=[_item_end(told) for told in detail.told])
    if isinstance(detail, Deferral):
        after_s = None if detail.after_s is None else _seconds(detail.after_s, 0.0)
        received = _within(detail.received, 0, NUMBER_MAX)
        return replace(detail, after_s=after_s, message=_text(detail.message, TEXT_MAX), received=received)
    return detail


def _item_end(told: ItemEnd) -> ItemEnd:
    detail = _detail(told.detail)
    return replace(
        told,
        run_s=_seconds(told.run_s, 0.0),
        failure=None if told.failure is None else _failure(told.failure),
        detail=detail if isinstance(detail, Deferral | LostInputs) else None,
    )


def _properties(farm: SchedulerState, session: str, event: m.PropertiesChanged, now: Now) -> m.PropertiesChanged | None:
    return event if _speaks_for(farm, session, event.engine) and _is_small(event) else None


def _is_small(properties: m.PropertiesChanged) -> bool:
    size = properties_bytes(properties.packed, properties.plain)
    return size <= PROPERTIES_BYTES and 0 <= properties.version <= NUMBER_MAX


def _frozen(farm: SchedulerState, session: str, event: m.Frozen, now: Now) -> m.Frozen | None:
    return replace(event, run=_frozen_run(event.run)) if _speaks_for(farm, session, event.engine) else None


def _frozen_run(run: FrozenRun | None) -> FrozenRun | None:
    if run is None:
        return None
    error, place = _text(run.error, TEXT_MAX), _text(run.place, TEXT_MAX)
    return replace(run, error=error, place=place, used_s=_seconds(run.used_s, 0.0))


def _set_up(farm: SchedulerState, session: str, event: m.SetUp, now: Now) -> m.SetUp | None:
    return replace(event, error=event.error[:LONG_TEXT_MAX]) if _speaks_for(farm, session, event.engine) else None


def _resource_request(
    farm: SchedulerState, session: str, event: m.ResourceRequest, now: Now
) -> m.ResourceRequest | None:
    if not _speaks_for(farm, session, event.engine) or len(event.amounts) > NAMES_MAX:
        return None
    # A request for more than there is of anything is answered with an error.
    amounts = {name[:200]: value if value <= AMOUNT_MAX else AMOUNT_MAX for name, value in event.amounts.items()}
    return replace(event, amounts={name: max(0.0, value) for name, value in amounts.items()})


def _progress(farm: SchedulerState, session: str, event: ProgressReport, now: Now) -> ProgressReport | None:
    if not _speaks_for(farm, session, event.engine) or not isfinite(event.value):
        return None
    total = event.total if event.total is None or isfinite(event.total) else None
    return replace(event, total=total, message=_text(event.message, TEXT_MAX))


def _engine_note(farm: SchedulerState, session: str, event: m.EngineNote, now: Now) -> m.EngineNote | None:
    agent = farm.agents.by_session.get(session)
    if agent is None or (event.engine is not None and not _speaks_for(farm, session, event.engine)):
        return None
    # Only a start that was asked for can fail, because each failure delays all others.
    failed = event.failed_start and event.id in agent.starting
    return replace(event, text=event.text[:TEXT_MAX], failed_start=failed)


# -- reports about the node, and answers to queries


def _node_state(farm: SchedulerState, session: str, event: m.NodeState, now: Now) -> m.NodeState:
    return m.NodeState(
        event.load if 0.0 <= event.load <= 1.0 else 1.0,
        _within(event.free_memory, 0, NUMBER_MAX), _within(event.free_disk, 0, NUMBER_MAX),
        _within(event.utc_offset_s, -86_400, 86_400),
        _within(event.fetched_blobs, 0, NUMBER_MAX), _within(event.fetched_bytes, 0, NUMBER_MAX),
        {
            name: _within(size, 0, NUMBER_MAX)
            for name, size in event.engine_bytes.items()
            if (engine := farm.engines.by_name.get(name)) is not None and engine.agent == session
        },
        _within(event.engine_limit, 0, NUMBER_MAX), _seconds(event.wall_s, 0.0),
    )  # fmt: skip


def _stack_text(farm: SchedulerState, session: str, event: m.StackText, now: Now) -> m.StackText | None:
    asked = farm.requests.stacks.get(event.n)
    return replace(event, text=event.text[:LONG_TEXT_MAX]) if asked is not None and asked[2] == session else None


def _kernel_answer(farm: SchedulerState, session: str, event: m.KernelAnswer, now: Now) -> m.KernelAnswer | None:
    asked = farm.requests.kernels.get(event.n)
    is_sound = asked is not None and asked[2] == session and len(event.reply.data) <= PIECE_BYTES
    return event if is_sound else None


def _output_text(farm: SchedulerState, session: str, event: m.OutputText, now: Now) -> m.OutputText | None:
    asked = farm.requests.outputs.get(event.n)
    if asked is None or owner(asked[1]) != session or event.run != asked[2]:
        return None
    seen = (_within(event.seen[0], 0, NUMBER_MAX), _within(event.seen[1], 0, NUMBER_MAX))
    displays = event.displays if len(event.displays) <= DISPLAYS_MAX else b""
    items = event.items if len(event.items) <= 4 * OUTPUT_MAX else b""
    serial = _within(event.serial, 0, NUMBER_MAX)
    stdout, stderr = event.stdout[-OUTPUT_MAX:], event.stderr[-OUTPUT_MAX:]
    return replace(event, stdout=stdout, stderr=stderr, seen=seen, displays=displays, serial=serial, items=items)


_CHECKS: dict[type, Check] = {
    m.AgentState: _agent_state,
    m.Leaving: _leaving,
    m.EngineUp: _engine_up,
    m.EngineDown: _engine_lost,
    m.Results: _results,
    m.Returned: _of_engine,
    m.CommandDone: _command_done,
    m.PropertiesChanged: _properties,
    m.StackText: _stack_text,
    m.KernelAnswer: _kernel_answer,
    m.OutputText: _output_text,
    m.EngineNote: _engine_note,
    m.NodeState: _node_state,
    m.SetUp: _set_up,
    m.Frozen: _frozen,
    m.ResourceRequest: _resource_request,
    TaskCall: _of_engine,
    ProgressReport: _progress,
    ItemsLeft: _items_left,
}
"""Each message of agents that reaches the scheduler; a test checks that none is missing."""


# -- values


def _within(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)


def _own_time(node_s: float, skew_s: float, now: Now) -> float:
    """Return a time of a node's clock as one of the controller's."""
    time_s = _seconds(node_s, now.wall_s)
    return min(max(0.0, time_s - skew_s), now.wall_s) if skew_s else time_s


def _seconds(value: float, otherwise: float) -> float:
    """Return a duration or a moment, or `otherwise` where the value makes no sense."""
    return value if 0.0 <= value <= SECONDS_MAX else otherwise


def _amounts(amounts: Mapping[str, float]) -> dict[str, float]:
    sound = [(name[:200], value) for name, value in amounts.items() if 0.0 <= value <= AMOUNT_MAX]
    return dict(sound[:NAMES_MAX])


def _text(text: str, most: int) -> str:
    """Return one line of the text, for tables and logs."""
    return text[:most] if text.isprintable() else "".join(c if c.isprintable() else " " for c in text[:most])


# -- tasks and questions of clients


def why_refused(question: object) -> m.Refusal | None:
    """Return the answer to a question that makes no sense.  None: it can be answered."""
    why = why_too_many(question) or _why_wrong_names(question) or why_not_storable(question)
    return m.Refusal("ValueError", f"{type(question).__name__}: {why}") if why else None


def _why_wrong_names(question: object) -> str:
    """Return why a question names no agents or nodes.  "" means it does.

    The agents of the farm's own machine have no name, and an empty name would mean all of them."""
    if isinstance(question, m.DrainNode):
        return why_nodes_refused(question)
    if isinstance(question, m.RemoveAgents | m.AgentsEnded) and "" in question.names:
        return "an agent's name in it is empty: name the agents, as `ipytaskfarm agents list` shows them"
    return ""


def why_not_storable(value: object) -> str:
    """Return the part of a client's message that cannot be stored or has no meaning; "" if there is none.

    Numbers must fit 64 bits and be finite, wherever they are. Words must be known, and durations, texts and lists
    within bounds.
    """
    try:
        return _why_not_storable(value)
    except RecursionError:
        return "it is nested too deeply"


def known_rules(rules: Rules, storable: dict[Rules, KnownRules]) -> tuple[KnownRules, str, int]:
    """Return rules, or the equal ones of earlier tasks; the same as `why_not_storable`; and the bytes of new rules.

    storable: small rules that can be stored are added: tasks that come later share them.
    """
    try:
        known = storable.get(rules)
        hashable = True
    except TypeError:  # a dict among the requirements has no hash
        known, hashable = None, False
    if known is not None:
        return known, "", 0
    why = why_not_storable(rules)
    size = len(encode(rules)) if not why else 0
    known = KnownRules(rules)
    if hashable and not why and size <= REMEMBERED_BYTES:
        if len(storable) >= REMEMBERED_MAX:
            storable.clear()
        storable[rules] = known
    return known, why, size


REMEMBERED_MAX = 16_384
"""The most rules that are remembered as storable."""
REMEMBERED_BYTES = 256
"""Larger rules are checked each time."""
_ALWAYS_STORABLE = frozenset({type(None), bool, bytes})


def _why_not_storable(value: object) -> str:
    kind = type(value)
    if kind is int:
        return "" if INT_MIN <= value <= INT_MAX else "a number in it is beyond 64 bits"  # type: ignore[operator]
    if kind is float:
        return "" if isfinite(value) else "a number in it is not finite"  # type: ignore[arg-type]
    if kind in _ALWAYS_STORABLE:
        return ""
    if kind is str:
        return why_text_too_long(value)  # type: ignore[arg-type]
    if isinstance(value, msgspec.Struct):
        return _why_struct_not_storable(value)
    parts: Iterable[object] = ()
    if isinstance(value, (list, tuple)):
        # Of thousands of ids, two are sufficient.
        parts = (min(value), max(value)) if len(value) > 2 and set(map(type, value)) == {int} else value
    elif isinstance(value, dict):
        parts = (*value, *value.values())
    for part in parts:
        if why := _why_not_storable(part):
            return why
    return ""


Given: TypeAlias = list[tuple[str, object]]
"""The fields of a message that are not defaults, by name."""
_Read: TypeAlias = Callable[[object], tuple[object, ...]]


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[_Read, tuple[str, ...], tuple[object, ...]]:
    """Return what reads all fields of a message at once, the fields' names and their defaults."""
    names = kind.__struct_fields__
    defaults = kind.__struct_defaults__
    # With two names or more `attrgetter` returns a tuple.
    read = attrgetter(*names) if len(names) > 1 else lambda value: tuple(getattr(value, name) for name in names)
    return read, names, (msgspec.NODEFAULT,) * (len(names) - len(defaults)) + defaults


def _why_struct_not_storable(value: msgspec.Struct) -> str:
    """Check the fields that are not defaults. Of a task's rules most are, so these are left out at C speed."""
    read, names, defaults = _fields(type(value))
    values = read(value)
    given: Given = list(compress(zip(names, values, strict=True), map(is_not, values, defaults)))
    for name, part in given:
        if isinstance(part, list | tuple) and (why := why_list_too_long(type(value), part)):
            return why
        if type(part) is str:
            if not may_be_long(type(value), name) and (why := why_text_too_long(part, name)):
                return why
        elif type(part) not in _ALWAYS_STORABLE and (why := _why_not_storable(part)):
            return why
    meaning = _MEANINGS.get(type(value))
    return "" if meaning is None else meaning(value, given)


def _wrong_placement(asks: Asks, given: Given) -> str:
    is_known = asks.placement is None or asks.placement in PLACEMENTS
    return "" if is_known else f"its placement is not one of {', '.join(PLACEMENTS)}"


def _wrong_operator(condition: Condition, given: Given) -> str:
    several = condition.op in ("in", "not in")
    is_sound = condition.op in OPERATORS and several is isinstance(condition.value, tuple)
    return why_condition_too_long(condition) if is_sound else "a condition in it has no such operator"


def _wrong_if_failed(needs: Needs, given: Given) -> str:
    return "" if needs.if_failed in IF_FAILED else f"its if_failed is not one of {', '.join(IF_FAILED)}"


def _wrong_duration(value: object, given: Given) -> str:
    durations = [part for name, part in given if name.endswith("_s") and isinstance(part, (int, float))]
    is_sound = all(0.0 <= each <= SECONDS_MAX for each in durations)
    return "" if is_sound else f"a duration in it is not between 0 and {SECONDS_MAX:.0e} seconds"


_MEANINGS: dict[type, Callable[[Any, Given], str]] = {
    Asks: _wrong_placement,
    Condition: _wrong_operator,
    Needs: _wrong_if_failed,
    Rules: _wrong_duration,
    Recycle: _wrong_duration,
    Environment: _wrong_duration,
}
"""Type of a part of a message -> what returns why its values have no meaning; "" if they have one."""
