"""Which engine prepares itself for which environment, when engines are recycled, and what jobs have to do with it."""

from __future__ import annotations

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.demands import Asks, Environment, Recycle
from ipytaskfarm.core.farm import Settings

from .simulated_farm import SimAgent, SimEngine, SimFarm, move


def env(name: str, **more: object) -> Environment:
    return Environment(identity=name, name=name, **more)  # type: ignore[arg-type]


def rules(name: str | None, recycle: Recycle | None = None, job: str | None = None, **more: object) -> m.Rules:
    environment = env(name) if name is not None else None
    return m.Rules(asks=Asks(environment=environment, recycle=recycle), job=job, **more)  # type: ignore[arg-type]


class World:
    """One node of so many slots, where engines run tasks one by one when they are told to."""

    def __init__(self, slots: int, **settings: object) -> None:
        self.sim = SimFarm(Settings(**settings))  # type: ignore[arg-type]
        self.sim.join_client()
        self.agent: SimAgent = self.sim.join_agent("agent")
        self.sim.settle()
        self.sim.ask(m.SetWanted(slots))
        self.move()
        self.next_id = self.sim.ids().first
        self.ran: list[tuple[str, int]] = []
        """(engine, task) in the order of beginning."""

    def move(self) -> None:
        for _ in range(20):
            move(self.sim, self.agent)
            self.sim.advance(0.0)
            if not self.agent.inbox and not self.agent.outbox:
                return

    def submit(self, task_rules: m.Rules | None, jobs: list[m.JobSpec] | None = None) -> int:
        self.sim.submit(self.next_id, task_rules, jobs=jobs or [])
        self.next_id += 1
        self.move()
        return self.next_id - 1

    def run(self, outcome: str = "", run_s: float = 0.1, memory: int = 0) -> list[int]:
        """Every engine that holds something runs one task; their ids."""
        ids = []
        for engine in list(self.agent.engines.values()):
            if self.sim.begin(engine):
                assert engine.running is not None
                ids.append(engine.running[0])
                self.ran.append((engine.name, engine.running[0]))
                self.sim.end(self.agent, engine, outcome, run_s, memory)
                self.move()
        return ids

    def run_all(self) -> None:
        for _ in range(10_000):
            if not self.run():
                return
        raise AssertionError("it does not end")

    @property
    def has(self) -> dict[str, str | None]:
        """Engine -> its environment."""
        return {e.name: e.environment.name if e.environment else None for e in self.agent.engines.values()}

    @property
    def environments(self) -> list[str | None]:
        return sorted(self.has.values(), key=str)

    @property
    def notes(self) -> int:
        """How many engines were started."""
        return self.agent.started

    def engine_of(self, name: str) -> SimEngine:
        return next(e for e in self.agent.engines.values() if e.environment and e.environment.name == name)

    def recycled(self) -> list[str]:
        return [engine.recycled for engine in self.sim.scheduler.farm.engines.values() if engine.recycled]


# -- the five situations of seed 003


def test_an_idle_engine_that_has_it_is_reused() -> None:
    world = World(2, warm=0)
    world.submit(rules("A"))
    world.run_all()
    first = world.engine_of("A").name
    world.submit(rules("A"))
    world.run_all()
    assert world.ran == [(first, 0), (first, 1)]
    assert world.agent.started == 1


def test_a_free_slot_goes_before_recycling() -> None:
    world = World(2, warm=0)
    world.submit(rules("A"))
    world.run_all()
    world.submit(rules("B"))
    world.run_all()
    assert world.environments == ["A", "B"]
    assert world.agent.started == 2


def test_without_a_free_slot_an_idle_engine_makes_room() -> None:
    world = World(2, warm=0)
    for name in "AB":
        world.submit(rules(name))
        world.run_all()
    world.submit(rules("C"))
    world.run_all()
    assert len(world.has) == 2
    assert "C" in world.environments
    assert "B" in world.environments, "the one that was idle for longest goes"
    assert world.agent.started == 3


@pytest.mark.parametrize("tasks", [1, 31, 32, 33])
def test_an_engine_is_recycled_when_its_count_is_full(tasks: int) -> None:
    world = World(1, warm=0)
    for _ in range(tasks):
        world.submit(rules("A", Recycle(after_tasks=32)))
    world.run_all()
    names = [name for name, _ in world.ran]
    assert [names.count(name) for name in dict.fromkeys(names)] == ([tasks] if tasks <= 32 else [32, tasks - 32])
    assert len(world.agent.engines) == (0 if tasks == 32 else 1)


def test_quick_tasks_are_not_sent_ahead_past_a_count() -> None:
    world = World(1)
    for _ in range(30):
        world.submit(rules("A", Recycle(after_tasks=7)))
    for _ in range(60):
        for engine in list(world.agent.engines.values()):
            held = len(engine.queue) + (engine.running is not None)
            assert engine.finished + held <= 7
        world.run(run_s=0.0001)
    assert len(world.ran) == 30


# -- which one


def test_a_blank_engine_prefers_what_nobody_has() -> None:
    world = World(3)
    for name in "AAABBC":
        world.submit(rules(name))
    assert world.environments == ["A", "A", "A"]  # the first three came alone: nobody knew of the others
    world = World(0)
    for name in "AAABBC":
        world.submit(rules(name))
    world.sim.ask(m.SetWanted(3))
    world.move()
    assert world.environments == ["A", "B", "C"]
    world.run_all()
    assert world.agent.started <= 4


def test_the_engine_that_has_it_goes_before_a_blank_one() -> None:
    world = World(3)
    world.submit(rules("A"))
    world.run_all()
    first = world.engine_of("A").name
    for _ in range(5):
        world.submit(rules("A"))
        world.run_all()
    assert {name for name, _ in world.ran} == {first}


def test_tasks_without_an_environment_take_blank_engines_first() -> None:
    world = World(2)
    world.submit(rules("A"))
    world.run_all()
    prepared = world.engine_of("A").name
    for _ in range(4):
        world.submit(None)
        world.run_all()
    assert prepared not in {name for name, task in world.ran if task > 0}


def test_an_engine_goes_on_with_its_own_environment_among_equals() -> None:
    for patience_s, order in ((None, "own"), (10.0, "own"), (1.0, "passed over")):
        world = World(1, environment_patience_s=patience_s)
        first = world.submit(rules("A"))
        plain = world.submit(None)
        own = world.submit(rules("A"))
        world.sim.advance(5.0)
        world.run_all()
        expected = [first, own, plain] if order == "own" else [first, plain, own]
        assert [task for _, task in world.ran] == expected


def test_tasks_without_an_environment_recycle_nobody() -> None:
    world = World(1)
    world.submit(rules("A"))
    world.run_all()
    for _ in range(3):
        world.submit(None)
    world.run_all()
    assert world.environments == ["A"]
    assert world.agent.started == 1


def test_an_own_task_goes_first_among_equals_but_not_before_a_more_urgent_one() -> None:
    world = World(1, environment_patience_s=None)
    first = world.submit(rules("A"))
    b = world.submit(rules("B"))
    a = world.submit(rules("A"))
    urgent = world.submit(rules("C", priority=5))
    late = world.submit(rules("A"))
    world.run_all()
    assert [task for _, task in world.ran] == [first, urgent, b, a, late] or [task for _, task in world.ran] == [
        first, urgent, a, late, b,
    ]  # fmt: skip


def test_who_was_passed_over_for_too_long_gets_an_engine() -> None:
    world = World(1, environment_patience_s=10.0)
    world.submit(rules("A"))
    b = world.submit(rules("B"))
    for _ in range(30):
        world.submit(rules("A"))
    done = []
    for _ in range(40):
        world.sim.advance(1.0)
        done += world.run()
    assert 8 <= done.index(b) <= 13


def test_without_patience_who_came_later_goes_on() -> None:
    world = World(1, environment_patience_s=None)
    world.submit(rules("A"))
    b = world.submit(rules("B"))
    for _ in range(30):
        world.submit(rules("A"))
    done = []
    for _ in range(40):
        world.sim.advance(1.0)
        done += world.run()
    assert done[-1] == b


def test_a_thousand_tasks_of_fifty_environments_on_four_slots() -> None:
    """The simulated optimum: each environment is set up once, so 46 engines are recycled."""
    world = World(0, environment_patience_s=None)
    for i in range(1000):
        world.sim.submit(world.next_id + i, rules(f"E{i % 50}"))
    world.sim.ask(m.SetWanted(4))
    world.move()
    world.run_all()
    assert len(world.ran) == 1000
    assert world.agent.started - 4 <= 1.2 * 46


def test_edited_environments_make_room_first() -> None:
    world = World(2)
    old = m.Rules(asks=Asks(environment=env("old", unique="db|None")))
    world.submit(old)
    world.submit(rules("A"))
    world.run_all()
    world.sim.told.clear()
    world.submit(m.Rules(asks=Asks(environment=env("new", unique="db|None"))))
    notices = [message for message in world.sim.told["client"] if isinstance(message, m.Notice)]
    assert "has changed" in notices[0].text
    world.run_all()
    assert world.environments == ["A", "new"]


def test_the_first_variant_wins_and_the_user_is_told() -> None:
    world = World(1)
    world.submit(m.Rules(asks=Asks(environment=env("db", unique="db|None", variant="1"))))
    world.sim.told.clear()
    world.submit(m.Rules(asks=Asks(environment=env("db", unique="db|None", variant="2"))))
    notices = [message.text for message in world.sim.told["client"] if isinstance(message, m.Notice)]
    assert len(notices) == 1
    assert "other attributes" in notices[0]


# -- recycling by time, memory, failure


def test_an_idle_engine_is_recycled_after_its_time() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(idle_s=1.0)))
    world.run_all()
    world.sim.advance(0.9)
    world.move()
    assert world.environments == ["A"]
    world.sim.advance(0.2)
    world.move()
    assert world.environments == [None]


def test_an_engine_that_works_is_not_idle() -> None:
    world = World(1)
    for _ in range(5):
        world.submit(rules("A", Recycle(idle_s=1.0)))
        world.sim.advance(0.8)
        world.run_all()
    assert world.agent.started == 1


def test_an_interval_counts_from_the_start_and_waits_for_the_task() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(interval_s=5.0)))
    engine = world.engine_of("A")
    world.sim.begin(engine)
    world.sim.advance(8.0)
    world.move()
    assert engine.name in world.has, "never within a task"
    world.sim.ask(m.SetWanted(1))
    world.move()
    assert world.agent.started == 1, "its slot is not free before it has ended"
    world.sim.end(world.agent, engine)
    world.move()
    assert engine.name not in world.has


def test_a_time_of_day_is_the_nodes_own() -> None:
    world = World(1)
    offset_s = 3600
    world.agent.outbox.append(m.NodeState(0.0, 2**30, 2**30, offset_s))
    world.move()
    local_s = int(world.sim.now.wall_s + offset_s) % 86400
    world.submit(rules("A", Recycle(at_times_s=((local_s + 100) % 86400, (local_s + 5000) % 86400))))
    world.run_all()
    world.sim.advance(98)
    world.move()
    assert world.environments == ["A"]
    world.sim.advance(3)
    world.move()
    assert world.environments == [None]


def test_memory_recycles_after_the_task_that_reached_it() -> None:
    world = World(1)
    for _ in range(4):
        world.submit(rules("A", Recycle(memory_bytes=100)))
    for memory in (40, 99, 100, 10):
        world.run(memory=memory)
    names = [name for name, _ in world.ran]
    assert [names.count(name) for name in dict.fromkeys(names)] == [3, 1]


def test_a_failure_recycles_only_where_that_was_asked_for() -> None:
    for on_failure, started in ((True, 2), (False, 1)):
        world = World(1)
        world.submit(rules("A", Recycle(on_failure=on_failure, after_tasks=100)))
        world.run("error")
        assert world.agent.started == started


def test_settings_of_the_empty_environment_count_its_own_job_alone() -> None:
    world = World(1)
    for _ in range(5):
        world.submit(None)
    world.submit(rules(None, Recycle(after_tasks=2), job="j"))
    world.submit(None)
    world.submit(rules(None, Recycle(after_tasks=2), job="j"))
    world.submit(None)
    world.run_all()
    names = [name for name, _ in world.ran]
    assert [names.count(name) for name in dict.fromkeys(names)] == [8, 1]


def test_a_recovery_task_needs_no_more_what_the_first_one_did() -> None:
    world = World(1)
    world.submit(rules("B"))  # its code comes with it
    world.run_all()
    recovery = m.Recovery(b"recovery", None, rules("B"))
    task = world.submit(rules("A", Recycle(when_unreferenced=True), recovery=recovery))
    world.run("error")
    world.run_all()
    assert world.sim.store.finals[task].reason == ""
    assert world.environments == ["B"], "its environment went with the first of its links"


# -- jobs


def job(name: str, total: int, environment: str | None = None) -> m.JobSpec:
    return m.JobSpec(name, name, total, environment)


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


def test_a_job_whose_client_went_away_ends_with_what_came() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(on_job_end=True), job="j"), [job("j", 5, "A")])
    world.sim.leave_client()
    world.run_all()
    assert world.agent.started == 2


# -- what a crash of the controller leaves


def test_engines_keep_their_environments_over_a_restart() -> None:
    world = World(1)
    for _ in range(3):
        world.submit(rules("A", Recycle(after_tasks=5)))
    world.run_all()
    kept = world.engine_of("A").name
    world.sim.crash()
    world.move()
    farm = world.sim.scheduler.farm
    assert farm.engines[kept].environment == env("A")
    world.sim.join_client("other")
    world.next_id = world.sim.ids("other").first
    for _ in range(3):
        world.sim.submit(world.next_id, rules("A", Recycle(after_tasks=5)), "other")
        world.next_id += 1
        world.move()
    world.run_all()
    names = [name for name, _ in world.ran]
    assert names.count(kept) == 5, "its count goes on"


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


# -- setup errors


def test_an_engine_that_cannot_be_set_up_is_replaced() -> None:
    world = World(1)
    task = world.submit(rules("A"))
    other = world.submit(rules("B"))
    engine = world.engine_of("A")
    world.sim.begin(engine)
    world.sim.end(world.agent, engine, "environment setup")
    world.agent.outbox.append(m.SetUp(engine.name, "A", 0.0, "ValueError: no"))
    world.move()
    assert world.sim.store.finals[task].reason == "environment setup"
    world.run_all()
    assert world.sim.store.finals[other].reason == ""
    assert world.agent.started == 2
    assert engine.name not in world.has


# -- warm


def test_free_slots_hold_as_many_blank_engines_as_are_kept_warm() -> None:
    world = World(4, warm=1)
    assert world.environments == [None]
    for name in "ABC":
        world.submit(rules(name))
        world.run_all()
    world.sim.advance(0.1)
    world.move()
    assert world.environments == ["A", "B", "C", None]
    world.submit(rules("D"))
    world.run_all()
    world.sim.advance(0.1)
    world.move()
    assert world.environments == ["A", "B", "C", "D"]


def test_blank_engines_that_are_too_many_end() -> None:
    world = World(3, warm=0, warm_s=10.0)
    for _ in range(3):
        world.submit(None)
    world.sim.advance(0.0)
    world.move()
    world.run_all()
    assert len(world.has) >= 1
    world.sim.advance(11.0)
    world.move()
    assert world.has == {}


# -- the first failure of a job


def submit_failing(world: World, total: int = 4, sent: int = 4) -> list[int]:
    spec = m.JobSpec("j", "j", total, abort_on_failure=True)
    return [world.submit(m.Rules(job="j"), [spec]) for _ in range(sent)]


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
    assert failure.value == f"task {ids[1]} of its job failed (error): planted"


def test_an_error_with_retries_left_ends_nothing() -> None:
    world = World(1)
    spec = m.JobSpec("j", "j", 2, abort_on_failure=True)
    ids = [world.submit(m.Rules(job="j", retries=1), [spec]) for _ in range(2)]
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
    reply = world.sim.ask(m.Retry(ids))
    assert isinstance(reply, m.Retried)
    assert len(reply.ids) == 4
    world.move()
    world.run_all()
    assert {reasons(world)[new] for _, new in reply.ids} == {""}


def test_an_abort_says_why() -> None:
    world = World(1)
    world.submit(None)
    task = world.submit(None)
    world.sim.ask(m.Abort([task], reason="the data is wrong"))
    failure = world.sim.store.finals[task].failure
    assert failure is not None
    assert failure.value == f"task {task} was aborted: the data is wrong"
