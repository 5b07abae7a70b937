"""Agents and the engines they bring: registering, adopting after a restart, starting, preparing, ending."""

from __future__ import annotations

from collections import Counter
from itertools import count

from ..decision import Decision
from ..demands import CORES, MEMORY
from ..eligibility import refresh_classes, wake
from ..ending import recycle
from ..environments import take_on
from ..farm import Agent, Batch, Claim, Engine, EngineState, Farm, Handing, Now
from ..gates import adopt_claim, answer_demand
from ..messages import AgentState, Demand, EngineNote, EngineReport, EngineUp, Lease, Properties, SetUp, StartEngine
from ..parcels import RunKey
from ..placement import release
from ..recycling import remember
from ..saves import SaveSetting
from ..slots import nodes_to_fill
from ..task import RETURNED
from ..transition import give_back, stand_anew
from .depends import ask_about, forget_engine
from .engines import engine_is_ready, prepare, retire_surplus
from .losses import agent_silent, back_off, forget_agent
from .nodes import DRAINED
from .results import save_batches

MORTAL = "mortal"
"""Key of the setting that says that agents whose time is limited have been here."""


def on_agent_state(farm: Farm, session: str, event: AgentState, now: Now, out: Decision) -> None:
    """An agent says what it is and what it holds: its engines are adopted, with what they run."""
    agent = farm.agents.get(session)
    if agent is None:
        agent = farm.agents[session] = Agent(session, event.node)
        out.notes.append(f"agent on {event.node} (pid {event.pid}) joined")
    agent.node, agent.pid, agent.slots = event.node, event.pid, event.slots
    agent.name, agent.brings = event.name, event.brings
    _note_time_left(farm, agent, event.time_left_s, now, out)
    agent.cores, agent.memory_bytes = event.cores, event.memory_bytes
    agent.platform, agent.python = event.platform, event.python
    agent.capacity = {CORES: event.cores, MEMORY: event.memory_bytes, **event.resources}
    agent.gpus, agent.priority = event.gpus, event.priority
    agent.former = frozenset(event.former)
    agent.utc_offset_s = event.utc_offset_s
    # The way of the message included.
    agent.clock_ahead_s = event.wall_s - now.wall_s if event.wall_s else None
    if event.node in farm.drained:
        agent.aside = DRAINED
    agent.here = agent.reachable = True
    agent.deadline_s = None
    agent.starting.clear()
    out.sends.append((session, Lease(farm.settings.lease_s)))
    for former in event.former:
        _is_dead(farm, former, now, out)
    for report in event.engines:
        if report.ready:
            _adopt(farm, agent, report, now, out)
        else:
            agent.starting[report.id] = now.mono_s
    farm.set_timer(now.mono_s, "balance")


def _note_time_left(farm: Farm, agent: Agent, left_s: float | None, now: Now, out: Decision) -> None:
    """When its time is over.  From the first such agent on tasks with a time limit wait in classes of their own."""
    agent.ends_s = None if left_s is None else now.mono_s + max(0.0, left_s)
    if left_s is None or farm.mortal:
        return
    farm.mortal = True
    out.saves.append(SaveSetting(MORTAL, 1))
    stand_anew(farm)


def _is_dead(farm: Farm, session: str, now: Now, out: Decision) -> None:
    """Another agent has this one's folder: it is dead, and what its engines left is about to be told."""
    agent = farm.agents.get(session)
    if agent is None:
        return
    agent.here = False
    agent.starting.clear()
    if agent.engines:
        agent_silent(farm, agent, now)
    else:
        forget_agent(farm, agent, out)


def on_engine_up(farm: Farm, session: str, event: EngineUp, now: Now, out: Decision) -> None:
    """A fresh engine: it runs the start-up code and sticky state before its first task."""
    agent = farm.agents.get(session)
    if agent is None:
        return
    agent.starting.pop(event.report.id, None)
    agent.backoff_s = 0.0
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
    if agent.leaving:  # it was about to start when its agent was told to end
        engine.retiring = True
    _adopt_environment(farm, engine, report, now)
    _reconcile(farm, engine, report.held, now, out)
    _adopt_holding(farm, agent, engine, report)
    if report.prepared or not farm.sticky:
        engine_is_ready(farm, engine, now, out)
        return
    engine.state = EngineState.PREPARING
    for entry in farm.sticky.values():
        prepare(farm, engine, entry.verb, entry.body, out)


def _adopt_environment(farm: Farm, engine: Engine, report: EngineReport, now: Now) -> None:
    if report.environment is not None and engine.environment is None:
        take_on(farm, engine, report.environment)
        engine.runs[report.environment.identity] = report.finished
        farm.perhaps_unused[report.environment.identity] = None
    engine.set_up = report.set_up
    for scope, settings in report.recycling:
        remember(farm, engine, scope, settings, now)


def _adopt_holding(farm: Farm, agent: Agent, engine: Engine, report: EngineReport) -> None:
    """What its running task holds is what it was told, and may have changed since."""
    if report.holding is None:
        return
    run, allotment = report.holding
    handing = engine.handed.get(run)
    if handing is not None:
        handing.claim = handing.claim or Claim()
        adopt_claim(farm, agent, handing.claim, allotment.amounts, allotment.gpus)


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
        back_off(farm, agent, now)


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


def on_set_up(farm: Farm, session: str, event: SetUp, now: Now, out: Decision) -> None:
    """An engine's environment is ready: what runs there is the task itself now."""
    engine = farm.engines.get(event.engine)
    if engine is None:
        return
    if event.error:
        what = "its environment could not be set up" if event.identity else "a task has spoiled its process"
        recycle(farm, engine, f"{what}: {event.error}", now, out)
    else:
        engine.set_up = True


def on_demand(farm: Farm, session: str, event: Demand, now: Now, out: Decision) -> None:
    """A running task wants to hold more, or less.  It is asked again until it is answered, so nothing need be kept."""
    agent, engine = farm.agents.get(session), farm.engines.get(event.engine)
    if agent is None or engine is None or event.run not in engine.handed:
        return
    agent.demands = [demand for demand in agent.demands if demand.run != event.run]
    _answer_or_keep(farm, agent, engine, event, out)
    answer_demands(farm, out)


def _answer_or_keep(farm: Farm, agent: Agent, engine: Engine, demand: Demand, out: Decision) -> None:
    granted = answer_demand(farm, agent, engine, demand)
    if granted is None:
        agent.demands.append(demand)
    else:
        out.sends.append((agent.session, granted))


def answer_demands(farm: Farm, out: Decision) -> None:
    """Where something was given back, running tasks that wait for more come before those that have not begun."""
    for session in farm.freed:
        agent = farm.agents.get(session)
        if agent is None or not agent.demands:
            continue
        demands, agent.demands = agent.demands, []
        for demand in demands:
            engine = farm.engines.get(demand.engine)
            if engine is not None and demand.run in engine.handed:
                _answer_or_keep(farm, agent, engine, demand, out)


# -- how many engines there are


def balance(farm: Farm, now: Now, out: Decision) -> None:
    """Start engines until there are as many as wanted; a replacement takes the lowest free id."""
    farm.balanced = True
    if farm.stopping:
        return
    taken = {e.id for e in farm.engines.values()}
    for agent in farm.agents.values():
        taken.update(agent.starting)
    free = (i for i in count() if i not in taken)
    chosen = list(nodes_to_fill(farm))
    counts = Counter(agent.session for agent in chosen)
    for agent in farm.agents.values():
        counts[agent.session] += len(agent.engines) + len(agent.starting)
    for agent, engine_id in zip(chosen, free, strict=False):
        agent.starting[engine_id] = now.mono_s
        out.sends.append((agent.session, StartEngine(engine_id, counts[agent.session])))
    retire_surplus(farm, out)
