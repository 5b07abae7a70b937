"""Agents and the engines they bring: registering, adopting after a restart, starting, preparing, ending."""

from __future__ import annotations

from ..eligibility import refresh_classes, wake
from ..farm import Agent, Batch, Decision, Engine, EngineState, Farm, Handing, Now
from ..messages import (
    AgentState,
    EngineNote,
    EngineReport,
    EngineUp,
    Properties,
    RunKey,
    StartEngine,
)
from ..placement import release
from ..task import RETURNED
from ..transition import give_back
from .depends import ask_about, forget_engine
from .engines import engine_is_ready, prepare, retire_surplus
from .losses import agent_silent, back_off
from .results import save_batches


def on_agent_state(farm: Farm, session: str, event: AgentState, now: Now, out: Decision) -> None:
    """An agent says what it is and what it holds: its engines are adopted, with what they run."""
    agent = farm.agents.get(session)
    if agent is None:
        agent = farm.agents[session] = Agent(session, event.node)
        out.notes.append(f"agent on {event.node} (pid {event.pid}) joined")
    agent.node, agent.pid, agent.slots = event.node, event.pid, event.slots
    agent.cores, agent.memory_bytes = event.cores, event.memory_bytes
    agent.platform, agent.python = event.platform, event.python
    agent.here = agent.reachable = True
    agent.deadline_s = None
    agent.starting.clear()
    for former in event.former:
        _is_dead(farm, former, now)
    for report in event.engines:
        if report.ready:
            _adopt(farm, agent, report, now, out)
        else:
            agent.starting[report.id] = now.mono_s
    farm.set_timer(now.mono_s, "balance")


def _is_dead(farm: Farm, session: str, now: Now) -> None:
    """Another agent has this one's folder: it is dead, and what its engines left is about to be told."""
    agent = farm.agents.get(session)
    if agent is None:
        return
    agent.here = False
    agent.starting.clear()
    if agent.engines:
        agent_silent(farm, agent, now)
    else:
        del farm.agents[session]
        farm.failing.discard(session)


def on_engine_up(farm: Farm, session: str, event: EngineUp, now: Now, out: Decision) -> None:
    """A fresh engine: it runs the start-up code and sticky state before its first task."""
    agent = farm.agents.get(session)
    if agent is None:
        return
    agent.starting.pop(event.report.id, None)
    farm.backoff_s = 0.0
    _adopt(farm, agent, event.report, now, out)
    out.notes.append(f"engine {event.report.id} on {agent.node} is up (pid {event.report.pid})")


def _adopt(farm: Farm, agent: Agent, report: EngineReport, now: Now, out: Decision) -> None:
    engine = farm.engines.get(report.engine)
    if engine is None:
        engine = Engine(report.engine, report.id, agent.session, agent.node)
        farm.enter(engine)
    farm.renumber(engine, report.id)
    engine.agent, engine.node = agent.session, agent.node
    engine.pid, engine.started_s = report.pid, report.started_s
    engine.facts, engine.connection_file = report.facts, report.connection_file
    engine.properties = report.properties
    agent.engines[engine.name] = engine
    _reconcile(farm, engine, report.held, now, out)
    if report.prepared or not farm.sticky:
        engine_is_ready(farm, engine, now, out)
        return
    engine.state = EngineState.PREPARING
    for entry in farm.sticky.values():
        prepare(farm, engine, entry.verb, entry.body, out)


def _reconcile(farm: Farm, engine: Engine, held: list[RunKey], now: Now, out: Decision) -> None:
    """What the store says was handed out and what the agent holds: what never arrived goes back, uncharged."""
    arrived = dict.fromkeys((task, attempt) for task, attempt in held)
    batches: dict[int, Batch] = {}
    for run in [run for run in engine.handed if run not in arrived]:
        handing = release(farm, engine, run, out)
        if handing is None:
            continue
        batches[handing.batch.number] = handing.batch
        task = farm.tasks.get(run[0])
        if task is not None and task.is_current(engine.name, run):
            give_back(farm, task, RETURNED)
    save_batches(engine, batches, out)
    if not arrived:
        return
    unrecorded = Batch(-1, {}, now.wall_s)
    ordered: dict[RunKey, Handing] = {}
    for run in arrived:
        handing = engine.handed.get(run)
        if handing is None:
            # Its task is final and its row is gone, yet the engine is busy with it.
            handing = Handing(unrecorded, 0.0, False, None)
            unrecorded.runs[run] = None
            engine.closed += 1
        ordered[run] = handing
    engine.handed = ordered
    if len(ordered) > 1:
        farm.laden[engine] = None


def on_engine_note(farm: Farm, session: str, event: EngineNote, now: Now, out: Decision) -> None:
    """Something that people should know; a failed start is tried again, later each time."""
    out.notes.append(f"engine {event.id}: {event.text}")
    engine = farm.engines.get(event.engine) if event.engine else None
    if engine is not None:
        engine.note = event.text
    agent = farm.agents.get(session)
    if event.failed_start and agent is not None:
        agent.starting.pop(event.id, None)
        farm.losses.append(f"engine {event.id} did not start: {event.text}")
        back_off(farm, now)
        farm.set_timer(farm.start_after_s, "balance")


def on_properties(farm: Farm, session: str, event: Properties, now: Now, out: Decision) -> None:
    """The user's properties of an engine have changed: what depends on them is asked anew."""
    engine = farm.engines.get(event.engine)
    if engine is None or (engine.properties is not None and engine.properties.version >= event.version):
        return
    engine.properties = event
    forget_engine(farm, engine)
    refresh_classes(farm, [engine])
    ask_about(farm, engine, out)
    if engine.state == EngineState.UP:
        wake(farm, engine)


# -- how many engines there are


def balance(farm: Farm, now: Now, out: Decision) -> None:
    """Start engines until there are as many as wanted; a replacement takes the lowest free id."""
    if farm.stopping:
        return
    if now.mono_s < farm.start_after_s:
        farm.set_timer(farm.start_after_s, "balance")
        return
    taken = {e.id for e in farm.engines.values()}
    for agent in farm.agents.values():
        taken.update(agent.starting)
    missing = farm.wanted - sum(1 for e in farm.engines.values() if not e.retiring) - _starting(farm)
    for _ in range(missing):
        roomy = _roomiest(farm)
        if roomy is None:
            return
        engine_id = next(i for i in range(len(taken) + 1) if i not in taken)
        taken.add(engine_id)
        roomy.starting[engine_id] = now.mono_s
        out.sends.append((roomy.session, StartEngine(engine_id)))
    retire_surplus(farm, out)


def _starting(farm: Farm) -> int:
    return sum(len(agent.starting) for agent in farm.agents.values())


def _roomiest(farm: Farm) -> Agent | None:
    def load(agent: Agent) -> int:
        return len(agent.engines) + len(agent.starting)

    able = [a for a in farm.agents.values() if a.able and (a.slots is None or load(a) < a.slots)]
    return min(able, key=lambda a: load(a) / max(1, a.cores), default=None)
