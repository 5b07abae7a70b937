"""Test the output of running tasks: which engines are asked, and how often; and the answer if no task can move."""

from __future__ import annotations

import msgspec

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers.requirements import REASONS_SHOWN, lines_by_reason
from ipytaskfarm.core.handlers.streams import PATIENCE_S
from ipytaskfarm.core.messages.payload import ItemOutput
from ipytaskfarm.core.messages.task_types import Needs, Rules
from tests.support.simulated_farm import SimAgent, SimEngine, SimFarm, farm_with_engines, move, one_engine


def running(rules: Rules | None = None) -> tuple[SimFarm, SimAgent, SimEngine, int]:
    """Provide a farm with one engine that runs a task of the client."""
    sim, agent, engine = one_engine()
    task_id = sim.ids().first
    sim.submit(task_id, rules)
    move(sim, agent)
    assert sim.begin(engine)
    return sim, agent, engine, task_id


def asked(sim: SimFarm, question: m.Outputs, session: str = "client") -> list[m.OutputQuery]:
    out = sim.handle(m.AskQuestion(77, question), session)
    return [message for _, message in out.sends if isinstance(message, m.OutputQuery)]


def answer(sim: SimFarm, agent: SimAgent, query: m.OutputQuery, text: str) -> list[tuple[str, m.Message]]:
    out = sim.handle(m.OutputText(query.n, query.run, text, "", (len(text), 0)), agent.session)
    return [(receiver, message) for receiver, message in out.sends if isinstance(message, m.Output)]


def test_the_engine_that_runs_the_task_is_asked_from_where_one_was() -> None:
    sim, agent, _, task_id = running()
    (query,) = asked(sim, m.Outputs([task_id], [(task_id, 1, 10, 20, 3)]))
    assert (query.run, query.stdout, query.stderr, query.serial) == ((task_id, 1), 10, 20, 3)
    ((receiver, output),) = answer(sim, agent, query, "hello")
    assert receiver == "client"
    assert isinstance(output, m.Output)
    assert (output.run, output.stdout, output.seen) == ((task_id, 1), "hello", (5, 0))
    assert answer(sim, agent, query, "again") == [], "a question is answered once"


def test_the_end_of_what_a_task_has_written_comes_without_displays_whatever_the_attempt() -> None:
    sim, agent, _, task_id = running()
    (query,) = asked(sim, m.Outputs.latest(task_id))
    assert (query.run, query.stdout, query.stderr, query.serial) == ((task_id, 1), 0, 0, m.NO_DISPLAYS)
    ((_, output),) = answer(sim, agent, query, "")
    assert isinstance(output, m.Output)
    assert output.texts_of(task_id) == ("", ""), "nothing is an answer, too"
    assert output.texts_of(task_id + 1) is None


def test_an_item_of_a_chunk_is_looked_at_in_the_chunk() -> None:
    sim, agent, engine = one_engine()
    chunk = sim.ids().first
    sim.submit(chunk, items=3)
    move(sim, agent)
    assert sim.begin(engine)
    (query,) = asked(sim, m.Outputs.latest(chunk + 2))
    assert (query.run, query.serial) == ((chunk, 1), m.NO_DISPLAYS)
    items = msgspec.msgpack.encode([ItemOutput(0, "first"), ItemOutput(1, "second", "bad")])
    out = sim.handle(m.OutputText(query.n, query.run, items=items), agent.session)
    (output,) = [message for _, message in out.sends if isinstance(message, m.Output)]
    assert output.texts_of(chunk + 2) == ("second", "bad")


def test_a_slow_engine_is_not_asked_again_until_it_has_answered() -> None:
    sim, agent, _, task_id = running()
    (query,) = asked(sim, m.Outputs([task_id]))
    assert asked(sim, m.Outputs([task_id])) == []
    assert answer(sim, agent, query, "") == [], "nothing new is no news"
    assert len(asked(sim, m.Outputs([task_id]))) == 1
    sim.advance(PATIENCE_S + 1.0)
    assert len(asked(sim, m.Outputs([task_id]))) == 1, "its answer was lost"


def test_two_who_look_on_each_have_their_own() -> None:
    sim, agent, _, task_id = running()
    sim.join_client("other")
    (mine,) = asked(sim, m.Outputs([task_id]))
    (theirs,) = asked(sim, m.Outputs([task_id]), "other")
    assert [r for r, _ in answer(sim, agent, theirs, "x")] == ["other"]
    assert [r for r, _ in answer(sim, agent, mine, "x")] == ["client"]


def test_other_tasks_are_none_of_ones_business() -> None:
    sim, _, _, task_id = running()
    sim.join_client("other")
    assert asked(sim, m.Outputs([task_id + 1])) == []
    assert asked(sim, m.Outputs(None), "other") == []
    assert len(asked(sim, m.Outputs(None))) == 1, "this session's own"


def test_an_engine_that_is_lost_is_forgotten() -> None:
    sim, agent, engine, task_id = running()
    asked(sim, m.Outputs([task_id]))
    sim.kill(agent, engine)
    move(sim, agent)
    farm = sim.scheduler.farm
    assert not farm.requests.outputs
    assert not farm.requests.outputs_asked


# -- why nothing moves


def stuck(sim: SimFarm, ids: list[int]) -> str:
    reply = sim.ask(m.Stuck(ids))
    assert isinstance(reply, m.TextReply)
    return reply.text


def test_what_runs_waits_its_turn_or_has_ended_is_not_stuck() -> None:
    sim, agent, engine, task_id = running()
    sim.submit(task_id + 1)
    assert stuck(sim, [task_id, task_id + 1]) == ""
    assert stuck(sim, [task_id + 1]) == ""
    sim.end(agent, engine)
    move(sim, agent)
    assert stuck(sim, [task_id]) == ""
    assert stuck(sim, []) == ""


def test_engines_with_the_same_reason_share_a_line() -> None:
    sim = farm_with_engines(5)
    sim.settle()
    first = sim.ids().first
    sim.submit(first, Rules(name="two\nlines", targets=(7,)))
    text = "it is not among the task's targets [7]"
    assert stuck(sim, [first]).splitlines() == [
        f"task {first} (two lines) is scheduled: no suitable engine",
        f"engine 0: {text} (engines 1 to 4 too)",
    ]
    assert lines_by_reason([(0, "a"), (1, "b"), (2, "a"), (3, "a"), (7, "a")]) == [
        "engine 0: a (engines 2 to 3, 7 too)",
        "engine 1: b",
    ]
    many = lines_by_reason((n, f"it runs task {n}") for n in range(10_000))
    assert many[-2:] == [f"engine {REASONS_SHOWN - 1}: it runs task {REASONS_SHOWN - 1}", "… and 9,900 other engines"]


def test_the_first_task_of_a_chain_is_named() -> None:
    sim, _, _, first = running()
    for task_id in range(first + 1, first + 1000):
        sim.submit(task_id, needs=Needs(after=(task_id - 1,)))
    text = sim.ask(m.ExplainTasks(first + 999))
    assert isinstance(text, m.TextReply)
    waits = f"it waits for task {first + 998} (waiting for tasks); the first of this chain is task {first} (running)"
    assert text.text.splitlines()[1] == waits


def test_without_an_engine_that_fits_it_is() -> None:
    sim, _, _ = one_engine()
    first = sim.ids().first
    sim.submit(first, Rules(targets=(7,)))
    sim.submit(first + 1, Rules(targets=(7,)))
    text = stuck(sim, [first, first + 1])
    assert "it is not among the task's targets [7]" in text
    assert "and 1 more like it" in text
    sim.submit(first + 2)
    assert stuck(sim, [first, first + 1, first + 2]) == "", "one of them may run"


def test_a_held_farm_and_one_without_engines() -> None:
    sim = farm_with_engines(0)
    first = sim.ids().first
    sim.submit(first)
    sim.scheduler.farm.diagnostics.losses.append("engine 0 on node exited with code 3")
    text = stuck(sim, [first])
    assert "the farm has no engines now" in text
    assert "no engine is ready, and the last that was lost: engine 0 on node exited with code 3" in text
    sim, agent, _ = one_engine()
    sim.ask(m.HoldFarm())
    first = sim.ids().first
    sim.submit(first)
    move(sim, agent)
    assert "the farm is paused" in stuck(sim, [first])


def listed(sim: SimFarm, question: m.ListRunning, session: str = "client") -> m.RunningTable:
    (answer,) = [
        message.reply
        for _, message in sim.handle(m.AskQuestion(78, question), session).sends
        if isinstance(message, m.Answer)
    ]
    assert isinstance(answer, m.RunningTable)
    return answer


def test_what_runs_is_listed_with_where_and_for_how_long() -> None:
    sim, _, engine, task_id = running()
    sim.advance(7.0)
    table = listed(sim, m.ListRunning([task_id]))
    assert [(row[0], row[1]) for row in table.rows] == [(task_id, engine.id)]
    assert 7.0 <= table.rows[0][2] < 8.0
    assert (table.count, table.idle) == (1, 0)
    assert listed(sim, m.ListRunning(None)) == table, "this session's own"


def test_of_others_tasks_nothing_is_listed() -> None:
    sim, _, _, task_id = running()
    sim.join_client("other")
    assert listed(sim, m.ListRunning([task_id + 1])).rows == []
    assert listed(sim, m.ListRunning(None), "other") == m.RunningTable([], 0, 0)


def test_idle_engines_are_counted() -> None:
    sim, _, _ = one_engine()
    assert listed(sim, m.ListRunning(None)) == m.RunningTable([], 0, 1)
