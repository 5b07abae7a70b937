"""Jobs: when they have ended, what that means for engines, and what the first failure means for the others."""

from __future__ import annotations

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.running_task import ItemsLeft
from ipytaskfarm.core.messages.task_types import JobSpec, Recovery, Rules
from ipytaskfarm.core.requirements import Recycle

from ..support.environment_world import World, rules
from ..support.simulated_farm import farm_with_engines, final_of, move, one_engine

# -- jobs


def job(name: str, total: int, environment: str | None = None) -> JobSpec:
    return JobSpec(name, name, total, environment)


def submit_job(world: World, name: str, environment: str, recycle: Recycle, total: int = 3) -> None:
    for _ in range(total):
        world.submit(rules(environment, recycle, job=name), [job(name, total, environment)])


def test_an_engine_stays_while_any_job_uses_its_environment() -> None:
    world = World(1)
    unreferenced = Recycle(when_unreferenced=True)
    submit_job(world, "1", "A", unreferenced)
    submit_job(world, "2", "A", unreferenced)
    for _ in range(5):
        world.run()
    assert world.agent.started == 1
    world.run()
    assert world.agent.started == 2, "recycled once, after both"


def test_an_engine_is_recycled_at_the_end_of_each_job() -> None:
    world = World(1)
    submit_job(world, "5", "A", Recycle(on_job_end=True))
    submit_job(world, "6", "A", Recycle(on_job_end=True))
    for _ in range(3):
        world.run()
    assert world.agent.started == 2
    for _ in range(3):
        world.run()
    assert world.agent.started == 3


def test_nothing_of_another_job_is_sent_ahead_past_the_end_of_a_job() -> None:
    world = World(1)
    jobs: dict[int, str] = {}
    for i in range(200):
        name = "5" if i < 20 or i % 2 else "6"
        jobs[world.submit(rules("A", Recycle(on_job_end=True), job=name), [job(name, 200, "A")])] = name
    ahead = 0
    for _ in range(250):
        for engine in world.agent.engines.values():
            held = {jobs[run[0]] for run in engine.held()}
            assert len(held) <= 1, "what is held for two jobs may have to be parted"
            ahead = max(ahead, len(engine.queue))
        world.run(run_s=0.0001)
    assert ahead > 1


def test_a_job_whose_tasks_have_not_all_come_has_not_ended() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(on_job_end=True), job="j"), [job("j", 2, "A")])
    world.run_all()
    assert world.agent.started == 1
    world.submit(rules("A", Recycle(on_job_end=True), job="j"), [job("j", 2, "A")])
    world.run_all()
    assert world.agent.started == 2


def test_a_job_is_forgotten_when_all_its_tasks_were_cleared() -> None:
    """It was only on disk; in memory, and in the live view, each map stayed until the controller's end."""
    world = World(1)
    jobs = world.sim.scheduler.farm.jobs
    for name in ("one", "two", "paused"):
        submit_job(world, name, "A", Recycle(), total=1)
        world.run()
    world.sim.ask(m.PauseJobs(["paused"], True))
    world.sim.ask(m.Clear([min(world.sim.scheduler.farm.tasks.finals)]))
    assert list(jobs.by_id) == ["two", "paused"]
    # Its client has another task for it, which counts as the second one.
    world.submit(rules("A", Recycle(), job="one"), [job("one", 2, "A")])
    world.run()
    assert jobs.by_id["one"].arrived == 2
    assert jobs.by_id["one"].ended
    world.sim.ask(m.Clear(None))
    assert list(jobs.by_id) == ["paused"]
    assert list(jobs.of_session["client"]) == ["paused"]
    world.sim.leave_client("client", said=True)
    world.sim.join_client("other")
    last = world.sim.ids("other").first
    world.sim.submit(last, session="other")
    world.sim.ask(m.AbortTasks([last]), "other")
    world.sim.ask(m.Clear(None), "other")
    assert not jobs.by_id
    assert not jobs.ended
    assert not jobs.paused
    assert not jobs.of_session


def test_a_job_whose_client_went_away_ends_with_what_came() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(on_job_end=True), job="j"), [job("j", 5, "A")])
    world.sim.leave_client()
    world.run_all()
    assert world.agent.started == 2


def test_jobs_are_known_after_a_restart() -> None:
    world = World(1)
    submit_job(world, "j", "A", Recycle(on_job_end=True), 2)
    world.run()
    world.sim.crash()
    world.move()
    world.run_all()
    assert world.agent.started == 2


def test_a_job_whose_client_leaves_when_all_that_came_has_ended_ends_too() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(on_job_end=True), job="j"), [job("j", 5, "A")])
    world.run_all()
    assert world.agent.started == 1
    world.sim.leave_client()
    world.move()
    assert world.agent.started == 2


def test_a_job_whose_client_does_not_come_back_after_a_restart_ends_with_what_came() -> None:
    world = World(1, lease_s=50.0)
    world.submit(rules("A", Recycle(on_job_end=True), job="j"), [job("j", 5, "A")])
    world.sim.crash()
    world.move()
    world.run_all()
    assert world.agent.started == 1
    world.sim.advance(51.0)
    world.move()
    assert world.agent.started == 2


# -- the first failure of a job


def submit_failing(world: World, total: int = 4, sent: int = 4) -> list[int]:
    spec = JobSpec("j", "j", total, abort_on_failure=True)
    return [world.submit(Rules(job="j"), [spec]) for _ in range(sent)]


def reasons(world: World) -> dict[int, str]:
    return {task: final.reason for task, final in world.sim.store.finals.items()}


def test_the_first_failure_ends_a_job_that_asks_for_it() -> None:
    world = World(1)
    other = world.submit(None)
    ids = submit_failing(world)
    world.run()
    world.run()
    world.run("error")
    assert reasons(world) == {
        other: "", ids[0]: "", ids[1]: "error", ids[2]: "aborted with its job", ids[3]: "aborted with its job",
    }  # fmt: skip
    failure = world.sim.store.finals[ids[2]].failure
    assert failure is not None
    assert failure.value == f"task {ids[1]} of its job failed (error): ValueError: planted"


def test_an_error_with_retries_left_ends_nothing() -> None:
    world = World(1)
    spec = JobSpec("j", "j", 2, abort_on_failure=True)
    ids = [world.submit(Rules(job="j", retries=1), [spec]) for _ in range(2)]
    world.run("error")
    world.run_all()
    assert reasons(world) == dict.fromkeys(ids, "")


def test_tasks_that_come_too_late_are_aborted_too_also_after_a_restart() -> None:
    for crash in (False, True):
        world = World(1)
        ids = submit_failing(world, total=4, sent=1)
        world.run("error")
        if crash:
            world.sim.crash()
            world.sim.join_client()
            world.move()
        ids += submit_failing(world, total=4, sent=3)
        assert reasons(world) == {ids[0]: "error"} | dict.fromkeys(ids[1:], "aborted with its job")


def test_a_retry_goes_on_with_the_job() -> None:
    world = World(1)
    ids = submit_failing(world)
    world.run("error")
    reply = world.sim.ask(m.RetryTasks(ids))
    assert isinstance(reply, m.Retried)
    assert len(reply.ids) == 4
    world.move()
    world.run_all()
    assert {reasons(world)[new] for _, new in reply.ids} == {""}


def test_a_result_that_is_made_again_is_not_aborted_with_its_job() -> None:
    """It was good before the first failure of its job; a retry goes on with the job, too."""
    sim = farm_with_engines(1)
    ids = sim.ids()
    spec = JobSpec("job", "job", 2, abort_on_failure=True)
    sim.submit(ids.first, Rules(job="job", unique="key"), jobs=[spec])
    sim.settle()
    sim.submit(ids.first + 1, Rules(job="job"), jobs=[spec])
    sim.ask(m.AbortTasks([ids.first + 1]))
    assert sim.scheduler.farm.jobs.by_id["job"].failed
    assert sim.ask(m.MarkTasksFailed(ids.first)) == m.TextReply("reopened")
    sim.submit(ids.first + 2, Rules(unique="key"))
    assert ids.first + 2 in sim.scheduler.farm.tasks.refusals, "it has its unique key again"
    sim.settle()
    assert final_of(sim, ids.first).reason == ""
    assert len(sim.begun[ids.first]) == 2


def test_a_recovery_task_without_rules_is_of_its_tasks_job_when_it_runs_again() -> None:
    """It was not counted, so the job never ended."""
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(job="job", recovery=Recovery(b"work")), jobs=[JobSpec("job", "job", 1)])
    move(sim, agent)
    sim.begin(engine)
    sim.end(agent, engine, "error")
    sim.settle()
    assert sim.ask(m.MarkTasksFailed(0)) == m.TextReply("reopened")
    sim.settle()
    assert sim.scheduler.farm.jobs.by_id["job"].complete


def test_an_abort_says_why() -> None:
    world = World(1)
    world.submit(None)
    task = world.submit(None)
    world.sim.ask(m.AbortTasks([task], reason="the data is wrong"))
    failure = world.sim.store.finals[task].failure
    assert failure is not None
    assert failure.value == f"task {task} was aborted: the data is wrong"


# -- items of a map


def test_an_engine_that_comes_to_an_item_which_has_ended_is_asked_again() -> None:
    sim = farm_with_engines(1)
    agent = sim.agents["agent"]
    chunk = sim.ids().first
    sim.submit(chunk, items=5)
    move(sim, agent)
    (engine,) = agent.engines.values()
    sim.begin(engine)
    sim.ask(m.AbortTasks([chunk + 4]))
    # The first interrupt comes to nothing: the engine was between two items, say.  It is at the fourth of them now.
    agent.inbox.clear()
    run = engine.running
    assert run is not None
    agent.outbox.clear()
    agent.outbox.append(ItemsLeft(engine.name, run, 3))
    sim.process(agent)
    asked = [message for message in agent.inbox if isinstance(message, m.Interrupt)]
    assert [(each.engine, each.run, each.items) for each in asked] == [(engine.name, run, (3,))]
    agent.outbox.append(ItemsLeft(engine.name, run, 2))
    agent.inbox.clear()
    sim.process(agent)
    assert not [message for message in agent.inbox if isinstance(message, m.Interrupt)], "this one may run"


def test_a_unique_key_is_the_tasks_until_it_ends_also_when_a_recovery_task_takes_over() -> None:
    sim = farm_with_engines(1)
    agent = sim.agents["agent"]
    (engine,) = agent.engines.values()
    first = sim.ids().first
    sim.submit(first, Rules(unique="key", recovery=Recovery(b"recovery")))
    move(sim, agent)
    sim.begin(engine)
    sim.end(agent, engine, "error")
    move(sim, agent)
    sim.submit(first + 1, Rules(unique="key"))
    assert sim.store.refusals[first + 1][0] == "DuplicateTask"
    sim.crash()
    sim.join_client()
    sim.submit(first + 2, Rules(unique="key"))
    assert sim.store.refusals[first + 2][0] == "DuplicateTask"
    sim.settle()
    assert final_of(sim, first).reason == ""
    sim.submit(first + 3, Rules(unique="key"))
    assert first + 3 in sim.scheduler.farm.tasks.unfinished


def test_a_task_with_a_unique_key_is_not_retried_beside_another_of_the_key() -> None:
    sim = farm_with_engines(1)
    agent = sim.agents["agent"]
    (engine,) = agent.engines.values()
    first = sim.ids().first
    for task in (first, first + 1):
        sim.submit(task, Rules(unique="key"))
        move(sim, agent)
        sim.begin(engine)
        sim.end(agent, engine, "error")
        move(sim, agent)

    def retried(*ids: int) -> m.Reply:
        numbers.append(len(numbers))  # a question that is repeated under its number is answered as before
        sim.handle(m.AskQuestion(numbers[-1], m.RetryTasks([*ids])), "client")
        return next(x.reply for x in reversed(sim.told["client"]) if isinstance(x, m.Answer))

    numbers: list[int] = []
    both = retried(first, first + 1)
    assert isinstance(both, m.Refusal)
    assert both.etype == "DuplicateTask"
    assert isinstance(retried(first), m.Retried)
    assert isinstance(retried(first + 1), m.Refusal)
    sim.settle()
    assert isinstance(retried(first + 1), m.Retried)


def test_a_job_with_a_unique_key_is_not_retried_beside_another_of_the_key() -> None:
    sim = farm_with_engines(1)
    agent = sim.agents["agent"]
    (engine,) = agent.engines.values()
    ids = sim.ids()
    specs = {name: JobSpec(name, name, 1, unique="key") for name in ("first", "second", "third")}
    sim.submit(ids.first, Rules(job="first"), jobs=[specs["first"]])
    move(sim, agent)
    sim.begin(engine)
    sim.end(agent, engine, "error")
    move(sim, agent)
    sim.submit(ids.first + 1, Rules(job="second"), jobs=[specs["second"]])
    refused = sim.ask(m.RetryTasks([ids.first]))
    assert isinstance(refused, m.Refusal)
    assert refused.etype == "DuplicateTask"
    sim.settle()
    sim.handle(m.AskQuestion(8, m.RetryTasks([ids.first])), "client")
    assert isinstance(sim.told["client"][-1], m.Answer)
    assert isinstance(sim.told["client"][-1].reply, m.Retried)
    sim.submit(ids.first + 2, Rules(job="third"), jobs=[specs["third"]])
    assert sim.store.refusals[ids.first + 2][0] == "DuplicateTask"
