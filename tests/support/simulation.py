"""Simulate a whole farm in one thread, with all faults that can happen to it, from one seed.

Real are the scheduler, the controller's loop, the store (SQLite, on a memory-backed disk), the sessions of both sides
and the client's outbox.  Simulated are time, the network, agents and engines.  The network loses, repeats, delays and
cuts; the controller dies at any of its kill points; agents and engines die; the machine is started again; wall clocks
jump.  Then all faults end, and
- every submitted task has ended, and the client has the same end as the store;
- a task that succeeded was run to its end by an engine, in the recorded attempt;
- no task was begun more often than its retries allow, nor charged for a loss in which it had no part.
A failing seed is the bug report: ``python -m tests.support.simulation SEED``.
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipytaskfarm.controller import loop
from ipytaskfarm.controller.loop import ControllerLoop
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers import timers
from ipytaskfarm.core.messages.task_types import Deferral, LostInputs, Needs, Recovery, Rules, RunKey
from ipytaskfarm.core.requirements import Asks, Environment, Recycle, ResourceAmount
from ipytaskfarm.core.saves import Save
from ipytaskfarm.core.scheduler.decision import Decision, Now
from ipytaskfarm.core.scheduler.restore import restored_farm
from ipytaskfarm.core.scheduler.scheduler import Scheduler
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.states import DEFERS, LOSES_INPUTS
from ipytaskfarm.storage.store import Store
from tests.support.simulated_hub import SimHub
from tests.support.simulated_peers import Agent, Client, Engine, Frame, Speaker

MEMORY_DISK = Path("/dev/shm")
SETTINGS = SchedulerSettings(lease_s=50.0, lease_margin_s=5.0, node_failures=10**9)
ENVIRONMENTS = tuple(Environment(identity=name, name=name) for name in "AB")
RULES = (
    None,
    None,
    Rules(retries=1),
    Rules(retries=3),
    Rules(retries=1, lost_retries=2, coroutine=True),
    Rules(priority=5, coroutine=True),
    Rules(targets=(0, 1)),
    Rules(asks=Asks(environment=ENVIRONMENTS[0], recycle=Recycle(after_tasks=3, keep_session=True))),
    Rules(asks=Asks(environment=ENVIRONMENTS[1], recycle=Recycle(on_failure=True, when_unreferenced=True))),
    Rules(retries=1, asks=Asks(resources=(ResourceAmount("cores", 1, 1),))),
    Rules(asks=Asks(exclusive=True)),
    Rules(asks=Asks(group="g", max_parallel=1)),
    Rules(retries=2, recovery=Recovery(b"recovery", None, Rules(retries=1))),
)

KILL_POINTS = ("received", "before the commit", "after the commit", "sending")


class Crash(BaseException):
    """The controller is killed here."""


class Clock:
    """Stands for the module `time` in the controller's loop."""

    def __init__(self) -> None:
        self.mono_s = 1000.0
        self.wall_s = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.mono_s

    def time(self) -> float:
        return self.wall_s

    def sleep(self, seconds: float) -> None:
        self.pass_(seconds)

    def pass_(self, seconds: float) -> None:
        self.mono_s += seconds
        self.wall_s += seconds


class Door:
    """The store's door, at which the controller may be killed."""

    def __init__(self, store: Store, world: World) -> None:
        self._store = store
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, saves: Sequence[Save]) -> list[int]:
        self._world.kill_point("before the commit")
        fenced = self._store.commit(saves)
        assert not fenced, f"the scheduler saved what the store fences off: {fenced}"
        self._world.kill_point("after the commit")
        return fenced


class World:
    """Everything, from one seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.clock = Clock()
        self.hostile = True
        self.speakers: dict[str, Speaker] = {}
        self.begun: defaultdict[int, list[RunKey]] = defaultdict(list)
        self.succeeded: set[RunKey] = set()
        self.uncharged: Counter[int] = Counter()
        """Task -> runs that were deferred, found their inputs lost, or were not given back in time."""
        self.reopened: set[int] = set()
        """Tasks that may have been reopened: by a mark, or because a result on which they depend was lost."""
        self.spawned: dict[tuple[RunKey, int], list[int]] = {}
        self.deaths: Counter[str] = Counter()
        self.hub = SimHub(self)
        self.store: Store | None = None
        self.controller: ControllerLoop | None = None
        self._armed = ""
        self.start_controller()
        self.client = self._add(Client(self, "client"))
        self.agents = [self._add(Agent(self, f"agent{n}", None)) for n in range(2)]
        for speaker in list(self.speakers.values()):
            speaker.dial()
        self.agents_made = 2
        self.client.ask(m.SetWanted(3))
        self.hostile = False
        for _ in range(12):
            self.round()
        self.hostile = True

    def _add(self, speaker: Any) -> Any:
        self.speakers[speaker.session] = speaker
        return speaker

    # -- the controller

    def start_controller(self) -> None:
        """From the store, like a new process."""
        self.store = Store.open(self.folder / "store.sqlite")
        if self.hostile and self.chance.random() < 0.1:  # killed within its recovery
            self.store.load()
            self._drop_store()
            self.deaths["in recovery"] += 1
            self.store = Store.open(self.folder / "store.sqlite")
        assert self.store.missing is None, self.store.missing
        now = Now(self.clock.mono_s, self.clock.wall_s)
        scheduler = Scheduler(restored_farm("sim", self.store.load(), SETTINGS, now))
        scheduler.check()
        self.hub.restart(self.store.epoch)
        self.controller = ControllerLoop(scheduler, Door(self.store, self), self.hub, self.folder)  # type: ignore[arg-type]

    def _drop_store(self) -> None:
        """Close the descriptors of the store and do nothing else, like a killed process."""
        assert self.store is not None
        self.store._db.close()
        self.store._count.close()  # type: ignore[union-attr]
        self.store._broken = "its process was killed"

    def kill_point(self, where: str) -> None:
        if self.hostile and self._armed == where and self.chance.random() < 0.5:
            self._armed = ""
            self.deaths[where] += 1
            raise Crash(where)

    def turn(self) -> None:
        assert self.controller is not None
        try:
            self.controller.turn()
            self.controller._scheduler.check()
        except Crash:
            self._drop_store()
            self.start_controller()

    # -- the network

    def from_wire(self, frames: deque[Frame]) -> Frame:
        """The next frame; now and then again, or one that overtook it."""
        if self.hostile:
            luck = self.chance.random()
            if luck < 0.02:
                return frames[0]  # it comes once more
            if luck < 0.03 and len(frames) > 1:
                frames.rotate(-1)
        return frames.popleft()

    def deliver(self, speaker: Speaker) -> None:
        connection = speaker.connection
        for _ in range(self.chance.randint(1, 8) if self.hostile else 10_000):
            if connection is None or connection.cut or not connection.down or speaker.connection is not connection:
                return
            speaker.hear(self.from_wire(connection.down))

    def cut(self, speaker: Speaker) -> None:
        if speaker.connection is not None:
            speaker.connection.cut = True

    # -- what happens

    def step(self) -> None:
        """One random thing."""
        chance = self.chance
        luck = chance.random()
        speaker = chance.choice(list(self.speakers.values()))
        if luck < 0.30:
            self.turn()
        elif luck < 0.55:
            for each in list(self.speakers.values()):
                if chance.random() < 0.7:
                    each.speak()
                    self.deliver(each)
        elif luck < 0.75:
            self.engines_do()
        elif luck < 0.84:
            self.client.submit(chance.randint(1, 12), chance.choice(RULES), self.some_needs())
        elif luck < 0.90:
            self.clock.pass_(chance.choice((0.001, 0.01, 0.1, 1.0, 1.0, 6.0)))
        else:
            self.misfortune(chance.random(), speaker)
        if (speaker.connection is None or speaker.connection.cut) and chance.random() < 0.3:
            speaker.dial()

    def some_needs(self) -> Needs | None:
        """Return dependencies on some of the tasks that were submitted last."""
        chance = self.chance
        recent = [i for i in list(self.client.submitted)[-20:] if i not in self.client.cleared]
        if not recent or chance.random() < 0.5:
            return None
        after = tuple(chance.sample(recent, min(len(recent), chance.randint(1, 4))))
        join = chance.random() < 0.2
        inputs = ((after[0], after[0]),) if not join and chance.random() < 0.5 else ()
        return Needs(after=after, inputs=inputs, if_failed=chance.choice(("fail", "skip", "run")), join=join)

    def check_needs(self, run: m.Run) -> None:
        """Check that a task that an engine gets has no open dependency, and that it has the results that it takes."""
        needs = self.client.needs.get(run.task)
        if needs is None:
            return
        assert not needs.join, f"join {run.task} was handed to an engine"
        assert self.store is not None
        reasons = {final.id: final.reason for final in self.store.finals(list(needs.after))}
        for other in needs.after:
            gone = other in self.client.cleared or other in self.client.refused or other in self.reopened
            assert other in reasons or gone, f"task {run.task} was handed out before task {other} had ended"
            if reasons.get(other) and other not in self.reopened:
                assert needs.if_failed == "run", f"task {run.task} was handed out although task {other} had failed"
        given = {each.number for each in run.special.inputs} if run.special is not None else set()
        assert given == {number for number, _ in needs.inputs}, f"task {run.task} was given other inputs than it takes"

    def reopens(self, ids: Sequence[int]) -> None:
        """Record that these tasks, and all that depend on them, may run again."""
        waiting = list(ids)
        while waiting:
            task_id = waiting.pop()
            if task_id not in self.reopened:
                self.reopened.add(task_id)
                # A retry waits for the tasks that its original waited for, or for their retries.
                origin = self.client.origin
                names = {task_id, origin.get(task_id, task_id)}
                needing = {i for i, needs in self.client.needs.items() if not names.isdisjoint(needs.after)}
                waiting += [*needing, *(retry for retry, first in origin.items() if first in needing)]

    def misfortune(self, luck: float, speaker: Speaker) -> None:
        chance = self.chance
        if luck < 0.30:
            self.cut(speaker)
        elif luck < 0.50:
            self._armed = chance.choice(KILL_POINTS)
        elif luck < 0.55:
            self.clock.wall_s += chance.choice((-7200.0, -1.0, 3600.0))
        elif luck < 0.60:
            self.clock.pass_(chance.choice((20.0, 60.0)))  # beyond the lease
            self.agents_mind_their_lease()
        elif luck < 0.64 and self.client.submitted:
            ids = chance.choices(list(self.client.submitted), k=3)
            self.client.ask(m.SetPriority(ids, chance.choice((-1, 0, 5, 6))))
        elif luck < 0.75 and self.client.submitted:
            self.client.ask(m.AbortTasks([chance.choice(list(self.client.submitted))], chance.random() < 0.7))
        elif luck < 0.78:
            self.client.ask(m.HoldFarm(chance.random() < 0.5))
        elif luck < 0.82:
            failed = self.client.retriable()
            if failed:
                self.client.retry(chance.choice(failed))
        elif luck < 0.84:
            self.client.ask(m.SetWanted(chance.randint(1, 4)))
        elif luck < 0.845 and self.client.told:
            marked = chance.choice(list(self.client.told))
            self.reopens([marked])
            self.client.ask(m.MarkTasksFailed(marked, "planted"))
        elif luck < 0.85:
            self.client.ask(m.SetSticky(chance.choice("ab"), "execute", b"start-up"))
        elif luck < 0.87 and self.client.told:
            self.client.clear(chance.choice(list(self.client.told)))
        elif luck < 0.92:
            busy = [(agent, engine) for agent in self.agents for engine in agent.engines.values() if engine.running]
            if busy:
                agent, engine = chance.choice(busy)
                agent.kill(engine, chance.random() < 0.7)
        elif luck < 0.99:
            self.replace_agent(chance.randrange(len(self.agents)))
        else:
            self.reboot()

    def reboot(self) -> None:
        """End the controller and all agents at once; the disk has the recorders as of some earlier moment."""
        self.deaths["reboot"] += 1
        for speaker in self.speakers.values():
            self.cut(speaker)
        for place in range(len(self.agents)):
            self.replace_agent(place, rebooted=True)
        self._armed = ""
        self._drop_store()
        self.start_controller()

    def agents_mind_their_lease(self) -> None:
        """Longer without the controller than the lease: an agent ends its engines, and itself."""
        for place in range(len(self.agents)):
            self.replace_agent(place)

    def replace_agent(self, place: int, rebooted: bool = False) -> None:
        """Kill an agent with its engines; the next agent finds their recorders."""
        former = self.agents[place]
        self.cut(former)
        former.dead = True
        del self.speakers[former.session]
        self.hub.connections.pop(former.session, None)
        self.agents_made += 1
        self.agents[place] = self._add(Agent(self, f"agent{self.agents_made}", former, rebooted))
        self.agents[place].dial()

    def engines_do(self) -> None:
        for agent in self.agents:
            for engine in list(agent.engines.values()):
                if engine.running is None:
                    agent.begin(engine)
                elif self.chance.random() < engine.ends_likely or not self.hostile:
                    self.end_one(agent, engine)

    def end_one(self, agent: Agent, engine: Engine) -> None:
        """A run says something, or ends: well, badly, for later, or without its inputs."""
        luck = self.chance.random() if self.hostile else 1.0
        assert engine.running is not None
        task_id = engine.running[0]
        needs = self.client.needs.get(task_id)
        if luck < 0.10:
            agent.spawn(engine, self.chance.randint(1, 2))
        elif luck < 0.16:
            self.uncharged[task_id] += 1
            agent.end(engine, DEFERS, Deferral(self.chance.choice((0.0, 2.0))))
        elif luck < 0.20 and needs is not None:
            self.uncharged[task_id] += 1
            self.reopens(needs.after)
            agent.end(engine, LOSES_INPUTS, LostInputs(needs.after))
        else:
            agent.end(engine, "error" if luck < 0.32 else "")

    # -- the end

    def heal(self) -> None:
        """Nothing bad happens any more: whatever can end, ends."""
        self.hostile = False
        self.client.ask(m.HoldFarm(False))
        self.client.ask(m.SetWanted(4))  # with these, ids 0 and 1 are there, which some tasks ask for
        for round_number in range(600):
            if round_number == 300:  # unless engines that were ending had them: the next ones take them
                self.client.ask(m.SetWanted(8))
            if round_number == 500:
                # A clock that was set an hour ahead between the end of a deferred attempt and its report, and back
                # before the controller died, makes the task wait an hour longer.
                self.clock.pass_(3600.0)
                self.agents_mind_their_lease()
            self.round()
            self.engines_do()
            self.clock.pass_(0.05 if round_number % 10 else 2.0)
            idle = not self.controller._scheduler.farm.tasks.unfinished if self.controller is not None else False
            if self.all_told() and idle and self.client.outbox.is_empty and not self.client.asked:
                return
        left = sorted(self.client.submitted.keys() - self.client.told.keys())
        raise AssertionError(f"{len(left)} tasks never ended: {left[:10]}")

    def round(self) -> None:
        """All that was said arrives, and is dealt with."""
        for speaker in self.speakers.values():
            if speaker.connection is None or speaker.connection.cut:
                speaker.dial()
            speaker.speak()
        self.turn()
        for speaker in list(self.speakers.values()):
            self.deliver(speaker)

    def all_told(self) -> bool:
        return set(self.client.submitted) <= set(self.client.told)

    def _linked_rules(self) -> list[Rules | None]:
        """The rules of all tasks that the store knows."""
        assert self.store is not None
        known = [row[0] for row in self.store._db.execute("SELECT id FROM tasks")]
        return [task.rules for task in self.store.original(known)]

    def judge(self) -> None:
        """Check the conditions that must hold at the end."""
        assert self.store is not None
        finals = {final.id: final for final in self.store.finals(sorted(self.client.submitted))}
        expected = self.client.submitted.keys() - self.client.cleared - self.client.refused
        # A result that other tasks needed, or a task that ran again at that moment, was not cleared.
        kept = {source for needs in self.client.needs.values() for source in needs.takes}
        kept |= self.reopened | self.client.not_cleared
        off = sorted((finals.keys() ^ expected) - (self.client.cleared & kept))
        assert not off, f"tasks are missing, or came back: {off}"
        again = Counter(rules.retry_of for rules in self._linked_rules() if rules is not None)
        assert all(count == 1 for task, count in again.items() if task is not None), f"retried twice: {again}"
        for task_id, rules in self.client.submitted.items():
            told = self.client.told[task_id]
            if task_id in self.client.refused:
                continue
            if task_id in self.reopened:
                told = finals.get(task_id, told)
            final = finals.get(task_id, told)  # for a cleared task only the message to the client is left
            assert final.reason == told.reason, f"task {task_id} is {final.reason!r}, its client knows {told.reason!r}"
            join = task_id in self.client.needs and self.client.needs[task_id].join
            if not final.reason and final.attempts and not join:  # a client that watches late gets only the reason
                assert (task_id, final.attempts) in self.succeeded, f"task {task_id} succeeded without a run that did"
            if (
                final.reason == "engine lost"
                and final.failure is not None
                and "may have run" not in final.failure.value
            ):
                assert (task_id, final.attempts) in self.begun[task_id], f"task {task_id} was charged, and never begun"
            most = allowed(rules) + self.uncharged[task_id]
            begun = self.begun[task_id]
            assert len(begun) <= most or task_id in self.reopened, f"task {task_id} was begun {begun}"
            assert len(set(self.begun[task_id])) == len(self.begun[task_id]), f"task {task_id}: one attempt began twice"


def allowed(rules: Rules | None) -> int:
    """Return how often a task may begin."""
    if rules is None:
        return 1
    recovery = allowed(rules.recovery.rules) if rules.recovery else 0
    return 1 + rules.retries + (rules.lost_retries or 0) + recovery


@contextmanager
def counted_elsewhere(world: World) -> Iterator[None]:
    """Record runs that an engine did not give back in time: they are assigned again, uncharged, and may begin twice."""
    usual = timers.TIMERS["recall_patience"]

    def count(farm: Any, data: Any, now: Now, out: Decision) -> None:
        tasks = farm.tasks.unfinished
        there = {run for run in data[1] if run[0] in tasks and tasks[run[0]].is_current(data[0], run)}
        usual(farm, data, now, out)
        world.uncharged.update(run[0] for run in there if not tasks[run[0]].is_current(data[0], run))

    timers.TIMERS["recall_patience"] = count
    try:
        yield
    finally:
        timers.TIMERS["recall_patience"] = usual


@contextmanager
def virtual_time(clock: Clock) -> Iterator[None]:
    """The controller's loop reads this clock."""
    setattr(loop, "time", clock)  # noqa: B010 - it is a module that stands there
    try:
        yield
    finally:
        setattr(loop, "time", time)  # noqa: B010


def run(seed: int, events: int = 200) -> Counter[str]:
    """One life of a farm; how often the controller was killed, by place."""
    folder = Path(tempfile.mkdtemp(prefix="ipytaskfarm-sim-", dir=MEMORY_DISK))
    try:
        folder.chmod(0o700)
        world = World(seed, folder)
        with virtual_time(world.clock), counted_elsewhere(world):
            for _ in range(events):
                world.step()
            world.heal()
            world.judge()
        world._drop_store()
        return world.deaths
    finally:
        shutil.rmtree(folder)


def main(words: list[str]) -> int:
    """Run seeds: ``python -m tests.support.simulation SEED [COUNT [EVENTS]]``, COUNT seeds from this one on."""
    logging.disable(logging.CRITICAL)
    first, count, events = (int(word) for word in (*words, *("0", "1", "200")[len(words) :]))
    deaths: Counter[str] = Counter()
    began_s = time.perf_counter()
    for seed in range(first, first + count):
        try:
            deaths += run(seed, events)
        except AssertionError as error:
            print(f"seed {seed}: {error}")
            raise
    print(
        f"{count} seeds of {events} events in {time.perf_counter() - began_s:.1f} s; the controller died {dict(deaths)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
