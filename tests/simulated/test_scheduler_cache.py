"""Tasks that use the result cache, case by case on the simulated farm."""

from __future__ import annotations

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.result_cache import ON, READONLY, REFRESH, CacheKey
from ipytaskfarm.core.messages.task_types import Ended, JobSpec, Needs, Recovery, Rules
from ipytaskfarm.testing.stepped_farm import SteppedFarm

from ..support.simulated_farm import final_of, move, one_engine


def key(name: str = "k", mode: str = ON) -> CacheKey:
    return CacheKey(name, "f", "recipe", (), mode)


def runs(sim: SteppedFarm, *ids: int) -> list[int]:
    return [len(sim.begun.get(i, ())) for i in ids]


def test_equal_tasks_run_once_and_another_key_runs() -> None:
    sim, _, _ = one_engine()
    for task in range(4):
        sim.submit(task, cache=key("a" if task < 3 else "b"))
    sim.settle()
    assert runs(sim, 0, 1, 2, 3) == [1, 0, 0, 1]
    assert [final_of(sim, i).attempts for i in range(4)] == [1, 0, 0, 1]
    sim.submit(4, cache=key("a"))
    assert final_of(sim, 4).attempts == 0, "a kept result needs no engine"


def test_the_next_runs_when_the_first_fails_or_is_aborted() -> None:
    sim, agent, engine = one_engine()
    for task in range(3):
        sim.submit(task, cache=key())
    move(sim, agent)
    sim.begin(engine)
    sim.end(agent, engine, "error")
    move(sim, agent)
    assert final_of(sim, 0).reason == "error"
    sim.ask(m.AbortTasks([1]))
    sim.settle()
    assert runs(sim, 0, 1, 2) == [1, 0, 1]
    assert final_of(sim, 2).reason == ""


def test_equal_tasks_do_not_wait_for_one_that_is_paused() -> None:
    """Whoever paused a job held up the calls of all others."""
    sim, _, _ = one_engine()
    spec = JobSpec("job", "job", 3)
    sim.submit(0, Rules(job="job", targets=(7,)), jobs=[spec])  # the job has begun
    sim.submit(1, Rules(job="job", targets=(7,)), jobs=[spec], cache=key("a"))
    sim.submit(2, cache=key("a"))
    assert "waits for task 1" in str(sim.ask(m.ExplainTasks(2)))
    sim.ask(m.PauseJobs(["job"], True))
    sim.submit(3, Rules(job="job"), jobs=[spec], cache=key("b"))
    sim.submit(4, cache=key("b"))
    sim.settle()
    assert runs(sim, 1, 2, 3, 4) == [0, 1, 0, 1]
    sim.ask(m.PauseJobs(["job"], False))
    sim.settle()
    assert runs(sim, 1, 3) == [0, 0], "the results of the others are theirs, too"
    assert final_of(sim, 1).from_cache
    assert final_of(sim, 3).from_cache


def test_tasks_that_wait_for_an_equal_one_are_stuck_with_it() -> None:
    sim, _, _ = one_engine()
    sim.submit(0, Rules(targets=(7,)), cache=key())
    sim.submit(1, cache=key())
    assert "waits for task 0" in str(sim.ask(m.Stuck([1])))


def test_one_that_can_run_runs_in_the_place_of_one_that_no_engine_can_run() -> None:
    sim, agent, engine = one_engine()
    elsewhere = Rules(targets=(7,))
    sim.submit(0, elsewhere, cache=key())
    sim.submit(1, elsewhere, cache=key())
    sim.submit(2, cache=key(mode=READONLY))
    sim.submit(3, cache=key())
    sim.submit(4, cache=key())
    sim.advance(6)
    sim.settle()
    assert runs(sim, 0, 1, 2, 3, 4) == [0, 0, 1, 0, 0], "its result is not for the others"
    sim.advance(6)
    move(sim, agent)
    sim.begin(engine)
    assert engine.running is not None
    assert engine.running[0] == 3
    sim.end(agent, engine, "error")
    move(sim, agent)
    assert runs(sim, 4) == [0], "the first one owns the key again"
    sim.advance(6)
    sim.settle()
    assert runs(sim, 0, 1, 4) == [0, 0, 1]
    assert all(final_of(sim, each).from_cache for each in (0, 1))


def test_the_task_whose_engine_has_come_runs() -> None:
    sim, _, _ = one_engine()
    sim.submit(0, Rules(targets=(7,)), cache=key())
    sim.submit(1, Rules(targets=(1,)), cache=key())
    sim.advance(20)
    sim.ask(m.SetWanted(2))
    sim.settle()
    sim.advance(6)
    sim.settle()
    assert runs(sim, 0, 1) == [0, 1]
    assert final_of(sim, 0).from_cache


def test_a_kept_result_that_is_marked_as_failed_is_computed_again_and_kept() -> None:
    sim, _, _ = one_engine()
    sim.submit(0, cache=key())
    sim.settle()
    sim.submit(1, cache=key())
    assert final_of(sim, 1).from_cache
    sim.ask(m.MarkTasksFailed(1, "damaged", only_ended=True))
    sim.settle()
    assert runs(sim, 0, 1) == [1, 1]
    assert not final_of(sim, 1).from_cache
    sim.submit(2, cache=key())
    sim.settle()
    assert final_of(sim, 2).from_cache, "what ran again was not kept"


def test_a_result_of_another_version_of_a_module_than_the_keys_is_not_kept() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0, cache=key())
    sim.submit(1, cache=key())
    move(sim, agent)
    sim.begin(engine)
    assert engine.running is not None
    sim.end_with(agent, engine, Ended(*engine.running, "", 0.0, 0.001, None, b"body", outdated="another version"))
    move(sim, agent)
    assert final_of(sim, 0).reason == ""
    sim.settle()
    assert runs(sim, 0, 1) == [1, 1], "the one that waited for it runs"
    sim.submit(2, cache=key())
    sim.settle()
    assert final_of(sim, 2).from_cache


def test_a_mark_of_what_has_ended_leaves_an_unfinished_task_alone() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0, cache=key())
    move(sim, agent)
    sim.begin(engine)
    reply = sim.ask(m.MarkTasksFailed(0, "damaged", only_ended=True))
    assert isinstance(reply, m.TextReply)
    assert "goes on" in reply.text
    sim.end(agent, engine)
    sim.settle()
    assert final_of(sim, 0).reason == ""


def test_modes() -> None:
    sim, _, _ = one_engine()
    sim.submit(0, cache=key(mode=READONLY))
    sim.settle()
    sim.submit(1, cache=key())
    sim.settle()
    sim.submit(2, cache=key(mode=READONLY))
    sim.submit(3, cache=key(mode=REFRESH))
    sim.settle()
    assert runs(sim, 0, 1, 2, 3) == [1, 1, 0, 1]


def test_retries_do_not_matter_and_the_recovery_tasks_result_is_not_kept() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(retries=1), cache=key())
    for outcome in ("error", ""):
        move(sim, agent)
        sim.begin(engine)
        sim.end(agent, engine, outcome)
        move(sim, agent)
    sim.submit(1, cache=key())
    assert final_of(sim, 1).attempts == 0
    sim.submit(2, Rules(recovery=Recovery(b"other")), cache=key("other"))
    for outcome in ("error", ""):
        move(sim, agent)
        sim.begin(engine)
        sim.end(agent, engine, outcome)
        move(sim, agent)
    assert final_of(sim, 2).reason == ""
    sim.submit(3, cache=key("other"))
    sim.settle()
    assert runs(sim, 3) == [1]


def test_results_of_other_tasks_belong_to_the_key() -> None:
    sim, _, _ = one_engine()
    takes = [Needs(after=(i,), inputs=((i, i),)) for i in (0, 1)]
    sim.submit(0)
    sim.submit(1)
    sim.submit(2, cache=key(), needs=takes[0])
    sim.submit(3, cache=key(), needs=takes[0])
    sim.submit(4, cache=key(), needs=takes[1])
    sim.settle()
    # All simulated results are equal.
    assert sum(runs(sim, 2, 3, 4)) == 1
    sim.submit(5, cache=key())
    sim.settle()
    assert runs(sim, 5) == [1], "no result belongs to its key"
    assert [final_of(sim, i).reason for i in (2, 3, 4, 5)] == [""] * 4


def test_a_restart_of_the_controller() -> None:
    sim, agent, engine = one_engine()
    for task in range(3):
        sim.submit(task, cache=key())
    move(sim, agent)
    sim.begin(engine)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    assert runs(sim, 0, 1, 2) == [1, 0, 0]
    sim.end(agent, engine)
    sim.settle()
    assert runs(sim, 0, 1, 2) == [1, 0, 0]
    assert [final_of(sim, i).reason for i in range(3)] == [""] * 3


def test_a_paused_job_takes_results_and_starts_nothing() -> None:
    sim, _, _ = one_engine()
    sim.submit(0, cache=key())
    sim.settle()
    rules = Rules(job="j")
    sim.submit(1, rules, jobs=[JobSpec("j", "j", 3)], cache=key("wait"))
    sim.ask(m.PauseJobs(["j"]))
    sim.submit(2, rules, jobs=[JobSpec("j", "j", 3)], cache=key())
    sim.submit(3, rules, jobs=[JobSpec("j", "j", 3)], cache=key("other"))
    sim.settle()
    assert final_of(sim, 2).attempts == 0
    assert runs(sim, 3) == [0]
    sim.ask(m.PauseJobs(["j"], on=False))
    sim.settle()
    assert runs(sim, 3) == [1]


def test_explain_names_the_equal_task() -> None:
    sim, _, _ = one_engine()
    sim.submit(0, cache=key())
    sim.submit(1, cache=key())
    reply = sim.ask(m.ExplainTasks(1))
    assert isinstance(reply, m.TextReply)
    assert "it waits for task 0, which is equal" in reply.text


def test_a_thousand_equal_tasks_end_together() -> None:
    sim, _, _ = one_engine()
    for task in range(600):
        sim.submit(task, cache=key())
    sim.settle()
    assert sum(runs(sim, *range(600))) == 1
    assert all(final_of(sim, i).reason == "" for i in range(600))
