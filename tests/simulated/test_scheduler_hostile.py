"""Test an enrolled but hostile agent: it reports about engines of others, and sends values that no one expects."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from ipytaskfarm.controller.direct_answers import DIRECT
from ipytaskfarm.core import messages as m, validation
from ipytaskfarm.core.handlers.running_tasks import children_of
from ipytaskfarm.core.handlers.submit import UNUSED_BLOCKS_MAX
from ipytaskfarm.core.message_bounds import HELD_MAX
from ipytaskfarm.core.messages import AgentMessage, Question, tables
from ipytaskfarm.core.messages.running_task import (
    Await,
    Children,
    Declined,
    ItemsLeft,
    ProgressReport,
    Spawn,
    Spawned,
    TaskCall,
)
from ipytaskfarm.core.messages.task_types import Deferral, Ended, Rules, Submission, encode_runs
from ipytaskfarm.core.requirements import Condition, unmet
from ipytaskfarm.core.saves import Save
from ipytaskfarm.core.scheduler import invariants
from ipytaskfarm.core.scheduler.events import Joined, Revoked
from ipytaskfarm.core.scheduler.scheduler import QUESTIONS
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.states import State
from ipytaskfarm.storage.store import Store
from tests.support.simulated_farm import SimAgent, SimEngine, SimFarm, final_of, move, one_engine

VICTIM, HOSTILE, SISTER = "slurm-1.0:5e2f", "slurm-1.1:0bad", "slurm-1.0:7a7a"
NAN, INF = float("nan"), float("inf")


def two_agents() -> tuple[SimFarm, SimAgent, SimEngine, SimAgent]:
    """Provide two agents with an engine each; the engine of the victim runs task 0, whose id `running` returns."""
    sim = SimFarm()
    sim.join_client()
    sim.ask(m.SetWanted(1))
    victim = sim.join_agent(VICTIM)
    sim.settle_start(victim)
    hostile = sim.join_agent(HOSTILE)
    sim.process(hostile)
    sim.ask(m.SetWanted(2))
    sim.settle_start(hostile)
    (engine,) = victim.engines.values()
    assert len(sim.scheduler.farm.engines.by_name) == 2
    return sim, victim, engine, hostile


def running(sim: SimFarm, victim: SimAgent, engine: SimEngine) -> int:
    """A task that the victim's engine runs."""
    task_id = sim.ids().first
    other = next(e for e in sim.scheduler.farm.engines.by_name.values() if e.name != engine.name)
    sim.submit(task_id, Rules(targets=(engine.id,), retries=1))
    assert other.id != engine.id
    move(sim, victim)
    assert sim.begin(engine)
    return task_id


def said_by_others(engine: str, run: tuple[int, int]) -> dict[str, Any]:
    ended = Ended(*run, "", 1.0, 0.1, None, b"forged")
    return {
        "results": m.Results(engine, [ended]),
        "a loss": m.EngineDown(engine, 0, run, True, m.Crash(signal=9)),
        "a return": m.Returned(engine, [run]),
        "properties": m.PropertiesChanged(engine, 7, b"x", {"gpu": True}),
        "an answer": m.CommandDone(engine, "client", 1, True, b"forged"),
        "a setup": m.SetUp(engine, "e", "it failed"),
        "a demand": m.ResourceRequest(engine, run, 1, {"cores": 1.0}),
        "a call": TaskCall(engine, run, 1, Children()),
        "waiting": TaskCall(engine, run, 1, Await([])),
        "progress": ProgressReport(engine, run, 0.5),
        "items": ItemsLeft(engine, run, 1),
        "a note": m.EngineNote(0, "bad", engine),
        "its engine": m.EngineUp(m.EngineReport(engine, 0, 666, True, 1.0)),
        "its next engine": m.EngineUp(m.EngineReport(f"{VICTIM}.2", 5, 666, True, 1.0)),
    }


@pytest.mark.parametrize("what", said_by_others("", (0, 0)))
def test_nobody_speaks_for_another_agents_engine(what: str) -> None:
    sim, victim, engine, _ = two_agents()
    task_id = running(sim, victim, engine)
    farm = sim.scheduler.farm
    before = (
        farm.engines.by_name[engine.name].pid,
        farm.engines.by_name[engine.name].properties,
        dict(farm.conversations.progress),
    )
    out = sim.handle(said_by_others(engine.name, (task_id, 1))[what], HOSTILE)
    assert farm.diagnostics.dropped == 1
    assert [note for note in out.notes if "may not send this" in note]
    assert not [*out.saves, *out.sends, *out.assignments, *out.loads]
    assert (
        farm.engines.by_name[engine.name].pid,
        farm.engines.by_name[engine.name].properties,
        dict(farm.conversations.progress),
    ) == before
    assert f"{VICTIM}.2" not in farm.engines.by_name
    assert farm.tasks.unfinished[task_id].state is State.PENDING
    sim.end(victim, engine)
    sim.settle()
    assert final_of(sim, task_id).body != b"forged"


def test_engines_and_former_sessions_of_others_are_not_adopted() -> None:
    sim, victim, engine, _ = two_agents()
    task_id = running(sim, victim, engine)
    farm = sim.scheduler.farm
    reports = [m.EngineReport(engine.name, engine.id, 666, True, 1.0, held=encode_runs([(task_id, 1)]))]
    sim.handle(m.AgentState("evil", 1, 2, 3, "linux", "3", reports, None, [VICTIM, "agent:x"]), HOSTILE)
    assert farm.engines.by_name[engine.name].agent == VICTIM
    assert farm.agents.by_session[VICTIM].present
    assert farm.agents.by_session[HOSTILE].former == frozenset()
    assert farm.diagnostics.dropped == 3
    sim.handle(m.EngineDown(engine.name, engine.id, (task_id, 1), True, m.Crash()), HOSTILE)
    assert farm.tasks.unfinished[task_id].state is State.PENDING


def test_the_next_agent_of_the_name_speaks_for_the_one_before_it() -> None:
    sim, victim, engine, _ = two_agents()
    task_id = running(sim, victim, engine)
    farm = sim.scheduler.farm
    sim.handle(Joined("agent", "node"), SISTER)
    sim.handle(m.AgentState("node", 1, 2, 3, "linux", "3", [], None, [VICTIM]), SISTER)
    sim.handle(m.Results(engine.name, [Ended(task_id, 1, "", 1.0, 0.1, None, b"mine")]), SISTER)
    assert farm.tasks.finals[task_id] == ""
    sim.handle(m.EngineDown(engine.name, engine.id, None, True, m.Crash()), SISTER)
    assert VICTIM not in farm.agents.by_session
    assert farm.diagnostics.dropped == 0


def test_output_and_stacks_are_answered_by_whom_they_were_asked() -> None:
    sim, victim, engine, _ = two_agents()
    task_id = running(sim, victim, engine)
    asked = sim.handle(m.AskQuestion(1, m.Outputs([task_id])), "client")
    (query,) = [said for _, said in asked.sends if isinstance(said, m.OutputQuery)]
    asked = sim.handle(m.AskQuestion(2, m.Stack(task_id)), "client")
    (stack,) = [said for _, said in asked.sends if isinstance(said, m.StackQuery)]
    forged: list[tuple[m.OutputText | m.StackText, str]] = [
        (m.OutputText(query.n, (task_id, 1), "forged"), HOSTILE),
        (m.OutputText(query.n, (task_id + 1, 1), "of another task"), VICTIM),
        (m.StackText(stack.n, "forged"), HOSTILE),
    ]
    for message, session in forged:
        assert not sim.handle(message, session).sends
    assert sim.handle(m.OutputText(query.n, (task_id, 1), "true"), VICTIM).sends
    assert sim.handle(m.StackText(stack.n, "true"), VICTIM).sends
    assert sim.scheduler.farm.diagnostics.dropped == 3


def test_only_a_start_that_was_asked_for_can_fail() -> None:
    sim, *_ = two_agents()
    sim.handle(m.EngineNote(9, "no", None, failed_start=True), HOSTILE)
    assert not any(agent.start_after_s for agent in sim.scheduler.farm.agents.by_session.values())


def test_numbers_that_are_none_are_not_reckoned_with() -> None:
    sim, victim, engine, _ = two_agents()
    first = running(sim, victim, engine)
    farm = sim.scheduler.farm
    sim.handle(m.AgentState("n", 1, -5, -1, "l", "3", [], -1, resources={"a": NAN, "b": -1.0, "gpu": INF}), HOSTILE)
    agent = farm.agents.by_session[HOSTILE]
    assert (agent.cores, agent.memory_bytes, agent.slots) == (1, 0, 0)
    assert agent.capacity == {"cores": 1, "memory": 0}
    sim.handle(m.AgentState("n", 1, 2, 3, "l", "3", [], wall_s=NAN), HOSTILE)
    assert agent.clock_ahead_s is None
    sim.handle(m.NodeState(NAN, -1, 2**63, 10**9), HOSTILE)
    assert agent.state == m.NodeState(1.0, 0, validation.NUMBER_MAX, 86_400)
    for amounts in ({"cores": NAN}, {"gpu": INF}, {"memory": 1e300}):
        out = sim.handle(m.ResourceRequest(engine.name, (first, 1), 1, amounts), VICTIM)
        (granted,) = [said for _, said in out.sends if isinstance(said, m.Granted)]
        assert "were asked for" in granted.error
    sim.handle(ProgressReport(engine.name, (first, 1), NAN), VICTIM)
    assert first not in farm.conversations.progress
    deferral = Ended(first, 1, "deferred", NAN, -INF, None, b"", (), -1, Deferral(NAN, "later", b"", 2**63))
    out = sim.handle(m.Results(engine.name, [deferral]), VICTIM)
    assert farm.tasks.unfinished[first].past.trial_state is not None
    assert "nan" not in repr(out.saves)
    assert "inf" not in repr(out.saves)


def test_a_timer_at_no_time_is_due_at_once() -> None:
    farm = two_agents()[0].scheduler.farm
    farm.timers.set(NAN, "nothing")
    assert farm.timers.heap[0][0] == 0.0


def test_a_report_whose_runs_cannot_be_read_is_dropped() -> None:
    sim, *_ = two_agents()
    before = sim.scheduler.farm.diagnostics.dropped
    many = encode_runs([(2**62, 2**62)] * (2 * HELD_MAX + 1))
    for held in (b"\xc1", b"\x91\x01", b"\x91\x92\x01\xa1x", many):
        sim.handle(m.EngineUp(m.EngineReport(f"{HOSTILE}.7", 7, 1, True, 1.0, held=held)), HOSTILE)
    assert sim.scheduler.farm.diagnostics.dropped == before + 4
    assert f"{HOSTILE}.7" not in sim.scheduler.farm.engines.by_name


def test_a_report_of_100000_engines_is_cut() -> None:
    sim, *_ = two_agents()
    facts = {"deep": [[]], "long": "x" * 100_000, "python": "3"}
    held = [(task, 1) for task in range(100_000)]
    reports = [m.EngineReport(f"{HOSTILE}.{n}", n, 1, True, 1.0, facts) for n in range(100, 100_100)]
    reports[0] = msgspec.structs.replace(reports[0], held=encode_runs(held))
    sim.handle(m.AgentState("n", 1, 2, 3, "l", "3", reports), HOSTILE)
    farm = sim.scheduler.farm
    assert len(farm.agents.by_session[HOSTILE].engines) == validation.ENGINES_MAX + 1  # and the one it had
    engine = farm.engines.by_name[f"{HOSTILE}.100"]
    assert len(engine.assigned) == HELD_MAX
    assert engine.facts == {}
    sim.handle(m.EngineUp(m.EngineReport(f"{HOSTILE}.7", 7, 1, True, 1.0)), HOSTILE)
    assert f"{HOSTILE}.7" not in farm.engines.by_name


def test_start_up_code_that_failed_in_a_way_nobody_can_read() -> None:
    sim = SimFarm()
    sim.join_client()
    sim.ask(m.SetSticky("startup", "execute", b"code"))
    sim.ask(m.SetWanted(1))
    agent = sim.join_agent(HOSTILE)
    sim.process(agent)
    while agent.inbox:
        sim.deliver(agent)
    sim.process(agent)
    engine = next(iter(sim.scheduler.farm.engines.by_name.values()))
    (number,) = engine.preparing
    sim.handle(m.CommandDone(engine.name, "", number, False, b"\xc1"), HOSTILE)
    assert "cannot be read" in engine.note


def test_a_version_of_5000_digits_is_no_reason_to_fail() -> None:
    assert unmet(Condition("python", ">=", "3.11"), {"python": "9" * 5000}) == ""


def test_a_revoked_agent_is_given_up_at_once() -> None:
    sim, victim, engine, hostile = two_agents()
    task_id = running(sim, victim, engine)
    waits = sim.ids().first
    sim.submit(waits, Rules(targets=(engine.id,)))
    out = sim.handle(Revoked(), VICTIM)
    farm = sim.scheduler.farm
    assert VICTIM not in farm.agents.by_session
    assert engine.name not in farm.engines.by_name
    assert any("its key was revoked" in note for note in out.notes)
    assert farm.tasks.unfinished[task_id].state is State.SCHEDULED
    assert farm.tasks.unfinished[task_id].past.losses == 1
    sim.handle(m.Results(engine.name, [Ended(task_id, 1, "", 1.0, 0.1, None, b"late")]), VICTIM)
    assert task_id not in farm.tasks.finals
    assert sim.handle(Revoked(), "nobody:1").saves == []
    sim.settle()
    assert {task_id, waits} <= farm.tasks.finals.keys(), "a replacement of the same id has run them"
    assert hostile.engines


# -- what clients say


@pytest.mark.parametrize("mark", ["", "x", "x:", "x:y", "x:-1", f"x:{'9' * 5000}", "x:²", f"{'x' * 300}:1"])
def test_a_mark_that_is_none_is_refused(mark: str) -> None:
    sim, victim, engine, _ = two_agents()
    task_id = running(sim, victim, engine)
    assert isinstance(sim.ask(m.SendToTask(task_id, [b"x"], mark)), m.Refusal)


def test_a_task_submits_neither_chunks_nor_items_of_chunks() -> None:
    """A chunk of 2**40 items would take the ids of all later tasks, and each table would count them."""
    sim, victim, engine, _ = two_agents()
    parent = running(sim, victim, engine)
    children = [Submission(-1, b"work", 1.0, items=2**40), Submission(-2, b"work", 1.0, part=(parent, 7))]
    sim.call(victim, engine, Spawn(1, children))
    move(sim, victim)
    farm = sim.scheduler.farm
    assert not farm.tasks.chunks.items
    assert not farm.tasks.chunks.parts
    assert len(children_of(farm, parent)) == 2


def test_children_of_one_call_do_not_share_a_unique_key() -> None:
    sim, victim, engine, _ = two_agents()
    parent = running(sim, victim, engine)
    rules = Rules(unique="key")
    sim.call(victim, engine, Spawn(1, [Submission(-1, b"a", 1.0, None, rules), Submission(-2, b"b", 1.0, None, rules)]))
    move(sim, victim)
    reply = engine.heard[-1].reply
    assert isinstance(reply, Declined)
    assert reply.etype == "DuplicateTask"
    assert children_of(sim.scheduler.farm, parent) == []


def test_a_table_of_the_last_minus_five() -> None:
    sim, victim, engine, _ = two_agents()
    task_id = running(sim, victim, engine)
    table = sim.ask(m.ListTasks(last=-5))
    assert isinstance(table, tables.TaskRows)
    assert [row.id for row in table.rows] == [task_id]


@pytest.mark.parametrize("rules", [Rules(defer_max_s=INF), Rules(retry_delays_s=(1.0, NAN))])
def test_rules_that_no_store_could_keep_are_refused(rules: Rules) -> None:
    sim, *_ = two_agents()
    task_id = sim.ids().first
    sim.submit(task_id, rules)
    assert "not finite" in sim.scheduler.farm.tasks.refusals[task_id][1]


def test_each_of_several_tasks_with_the_same_bad_rules_is_refused() -> None:
    sim, *_ = two_agents()
    first = sim.ids().first
    tasks = [Submission(task_id, b"work", 1.0, None, Rules(priority=2**63)) for task_id in (first, first + 1)]
    sim.handle(m.Submit(tasks), "client")
    assert sim.scheduler.farm.tasks.refusals.keys() >= {first, first + 1}


def test_who_asks_for_ids_without_using_them_gets_no_more() -> None:
    sim, *_ = two_agents()
    before = len(sim.scheduler.farm.clients.ids.blocks)
    for _ in range(1000):
        sim.handle(m.NeedIds(), "client")
    blocks = sim.scheduler.farm.clients.ids.blocks
    assert len(blocks) - before <= UNUSED_BLOCKS_MAX
    sim.submit(blocks[0].next)
    assert sim.handle(m.NeedIds(), "client").sends, "who uses ids gets others"


def test_a_farm_has_room_for_so_many_tasks() -> None:
    sim, *_ = two_agents()
    sim.scheduler.farm.settings = dataclasses.replace(sim.scheduler.farm.settings, max_tasks=3)
    first = sim.ids().first
    tasks = [Submission(first + n, b"work", 1.0) for n in range(5)]
    for task in tasks[:3]:
        sim.handle(m.Submit([task]), "client")
    out = sim.handle(m.Submit(tasks[3:]), "client")
    (full,) = [said for _, said in out.sends if isinstance(said, m.Full)]
    assert full.first_id == first + 3
    assert "3 are the most of this farm (max_tasks)" in full.why
    sim.settle()
    assert [said for _, said in sim.handle(m.Submit(tasks[3:]), "client").sends if isinstance(said, m.Accepted)]


def test_children_and_retries_count_among_the_tasks_of_a_farm() -> None:
    """A task that submits itself filled the controller's memory."""
    sim, agent, engine = one_engine(SchedulerSettings(max_tasks=3))
    for task_id in range(3):
        sim.submit(task_id)
    move(sim, agent)
    sim.begin(engine)
    sim.ask(m.AbortTasks([2]))
    made = [Submission(-1, b"work", 0.0)]
    first, second = (sim.call(agent, engine, Spawn(n, made)) for n in (1, 2))
    move(sim, agent)
    answers = {reply.n: reply.reply for reply in engine.heard}
    assert isinstance(answers[first], Spawned)
    declined = answers[second]
    assert isinstance(declined, Declined)
    assert "max_tasks" in declined.text
    refused = sim.ask(m.RetryTasks([2]))
    assert isinstance(refused, m.Refusal)
    assert refused.etype == declined.etype == "StoreFull"


# -- anything at all


def test_each_message_of_agents_is_checked() -> None:
    assert set(get_args(AgentMessage)) - DIRECT == validation._CHECKS.keys()


def test_each_question_is_answered_by_the_scheduler_or_by_the_loop() -> None:
    assert set(get_args(Question)) - DIRECT == QUESTIONS.keys()


INTS = (-(2**63), -1, 0, 1, 2, 7, 2**31, 2**53 + 1, 2**63 - 1, 2**64 - 1)
FLOATS = (NAN, INF, -INF, -1.0, 0.0, 0.5, 1e-320, 1e308)


class Anything:
    """Values of any type that a message may have, hostile ones above all."""

    def __init__(self, seed: int, names: list[str], runs: list[tuple[int, int]]) -> None:
        self.chance = random.Random(seed)
        self.names = names
        self.runs = runs

    def of(self, kind: inspect.Type, depth: int = 0) -> Any:
        choose = self.chance.choice
        match kind:
            case inspect.StructType():
                return self.struct(kind.cls, depth + 1)
            case inspect.IntType():
                return choose(INTS)
            case inspect.FloatType():
                return choose(FLOATS)
            case inspect.BoolType():
                return choose((True, False))
            case inspect.StrType():
                return choose((*self.names, "", "client", "cores", "x" * 3000, "\x1b[2J\nERROR forged", "deferred"))
            case inspect.BytesType():
                return choose((b"", b"\xc1", b"\x91" * 500, b"x"))
            case inspect.NoneType():
                return None
            case inspect.UnionType():
                return self.of(choose(kind.types), depth)
            case inspect.ListType() | inspect.VarTupleType():
                made = [self.of(kind.item_type, depth + 1) for _ in range(choose((0, 1, 1, 3)) if depth < 6 else 0)]
                return made if isinstance(kind, inspect.ListType) else tuple(made)
            case inspect.TupleType():
                if [type(each) for each in kind.item_types] == [inspect.IntType] * 2 and choose((True, False)):
                    return choose(self.runs)
                return tuple(self.of(each, depth + 1) for each in kind.item_types)
            case inspect.DictType():
                return {self.of(kind.key_type): self.of(kind.value_type, depth + 1) for _ in range(choose((0, 1, 3)))}
            case inspect.AnyType():
                return choose((1, NAN, "9" * 5000, [1], {"a": {}}, None))
        raise AssertionError(kind)

    def struct(self, cls: type, depth: int = 0) -> Any:
        info = inspect.type_info(cls)
        assert isinstance(info, inspect.StructType)
        names = [field.name for field in info.fields]
        return cls(**{name: self.of(field.type, depth) for name, field in zip(names, info.fields, strict=True)})


KINDS = [kind for kind in get_args(AgentMessage) if kind not in DIRECT]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_hostile_agent_says_the_farm_goes_on(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real store is used: the decisions can be stored, and a controller can start from them again."""
    # Of its own node it may say what contradicts itself: that less is there than is in use.
    monkeypatch.setattr(invariants, "_check_claims", lambda farm: None)
    sim, _, engine, hostile = two_agents()
    store = Store.open(tmp_path / "store.sqlite", farm_incarnation="sim")
    keep = sim.store.commit

    def commit(saves: list[Save]) -> None:
        store.commit(saves)
        keep(saves)

    sim.store.commit = commit  # type: ignore[method-assign]
    block = sim.ids()
    ids = list(range(block.first, block.first + 40))
    for task_id in ids:
        sim.submit(task_id, Rules(retries=3, lost_retries=20))
    own = next(iter(hostile.engines))
    anything = Anything(seed, [own, own, engine.name, HOSTILE, f"{HOSTILE}.9"], [(i, n) for i in ids for n in (1, 2)])
    for n in range(40 * len(KINDS)):
        message = anything.struct(KINDS[n % len(KINDS)])
        try:
            again = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
        except msgspec.ValidationError:
            continue  # not even the wire lets that in
        sim.handle(again, HOSTILE)
        if n % 50 == 0:
            sim.advance(0.5)
    sim.handle(Revoked(), HOSTILE)
    del sim.agents[HOSTILE]
    sim.settle()
    assert sim.scheduler.farm.tasks.unfinished.keys().isdisjoint(ids)
    assert {store.finals([task_id])[0].id for task_id in ids} == set(ids)
    store.close()
    Store.open(tmp_path / "store.sqlite", farm_incarnation="sim").close()


ENDS_THE_FARM = (m.StopFarm, m.SetWanted, m.HoldFarm, m.RemoveEngines, m.RemoveAgents, m.AgentsEnded, m.DrainNode)
"""The questions that every client may ask, and after which no farm can go on."""
QUESTIONS_ASKED = [kind for kind in QUESTIONS if kind not in ENDS_THE_FARM]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_hostile_client_says_the_farm_goes_on(seed: int, tmp_path: Path) -> None:
    """Each kind of message of clients, and each question, with values that no one expects, in the real store."""
    sim, _, engine, _ = two_agents()
    store = Store.open(tmp_path / "store.sqlite", farm_incarnation="sim")
    keep = sim.store.commit

    def commit(saves: list[Save]) -> None:
        store.commit(saves)
        keep(saves)

    sim.store.commit = commit  # type: ignore[method-assign]
    sim.handle(Joined("client", "thief"), "thief")
    sim.handle(m.NeedIds(), "thief")
    first = sim.scheduler.farm.clients.of("thief").blocks[0].first
    anything = Anything(seed, ["thief", engine.name], [(n, 1) for n in range(first, first + 16)])
    kinds = [m.Submit, m.NeedIds, m.SendCommand, *QUESTIONS_ASKED]
    for n in range(12 * len(kinds)):
        kind = kinds[n % len(kinds)]
        message = anything.struct(kind)
        wire_kind: Any = kind
        if kind in QUESTIONS:
            message, wire_kind = m.AskQuestion(n, message), m.AskQuestion
        elif kind is m.Submit:  # ids that it was given, in their order
            tasks = [msgspec.structs.replace(t, id=first + n % 16 + i) for i, t in enumerate(message.tasks)]
            message = msgspec.structs.replace(message, tasks=tasks)
        try:
            again: Any = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=wire_kind)
        except msgspec.ValidationError:
            continue  # not even the wire lets that in
        sim.handle(again, "thief")
        if n % 20 == 0:
            sim.advance(0.1)
    honest = sim.ids().first
    sim.submit(honest)
    sim.handle(m.AskQuestion(1, m.AbortTasks([*range(first, first + 16)])), "thief")
    sim.settle()
    assert honest in sim.scheduler.farm.tasks.finals
    store.close()
    Store.open(tmp_path / "store.sqlite", farm_incarnation="sim").close()
