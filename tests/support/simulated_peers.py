"""The peers of a controller in a simulation: a client with the real outbox, and simulated agents and engines."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from ipytaskfarm.client.outbox import Outbox
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.running_task import Spawn, Spawned, TaskCall, TaskReply
from ipytaskfarm.core.messages.task_types import (
    Deferral,
    Ended,
    FailureSummary,
    Final,
    Function,
    LostInputs,
    Needs,
    Packed,
    Rules,
    RunKey,
    Submission,
    encode_runs,
)
from ipytaskfarm.core.requirements import Allotment, Environment, Recycle
from ipytaskfarm.transport import wire
from ipytaskfarm.transport.reliable_session import Greeting, Heard, ReliableSession

if TYPE_CHECKING:
    from tests.support.simulation import World

encode = msgspec.msgpack.encode
Frame = tuple[str, Any]
"""("frame", bytes), ("hello", (epoch, last_in)), ("welcome", (epoch, last_in)) or ("who are you", None)."""


class Connection:
    """Frames on their way, in both directions."""

    def __init__(self) -> None:
        self.up: deque[Frame] = deque()
        self.down: deque[Frame] = deque()
        self.cut = False


class Speaker:
    """One end of a conversation that outlives its connections: the peer's."""

    role = ""

    def __init__(self, world: World, session: str) -> None:
        self.world = world
        self.session = session
        self.link = ReliableSession()
        self.connection: Connection | None = None
        self.greeted = False
        self.dead = False

    def dial(self) -> None:
        if self.dead:
            return
        self.connection = Connection()
        self.greeted = False
        self.world.hub.connections[self.session] = self.connection
        self.connection.up.append(("hello", self.link.position()))

    def say(self, message: object, token: object | None = None) -> None:
        self.link.say(encode(message), token)

    def speak(self) -> None:
        """Put the waiting messages onto the connection."""
        if self.connection is None or self.connection.cut or not self.greeted:
            return
        while (frame := self.link.next_frame()) is not None:
            self.connection.up.append(("frame", frame))
            self.link.was_sent()
        self.connection.up.append(("frame", self.link.beat()))

    def hear(self, frame: Frame) -> None:
        what, data = frame
        if what == "welcome" and self.greeted:
            return  # it comes once more
        if what == "welcome":
            met = self.link.meet_welcome(*data)
            if met is Greeting.NONSENSE:
                self.link.begin(0)
                self.dial()
                return
            self.greeted = True
            if met is Greeting.ANEW:
                self.new_epoch()
        elif what == "who are you":
            self.dial()
        else:
            heard, body = self.link.hear(data)
            if heard is Heard.GAP or heard is Heard.NONSENSE:
                self.dial()
            elif body is not None:
                for message in self.decode(body):
                    self.receive(message)
            self.link.confirm()
            for token in self.link.freed():
                self.acked(token)

    def decode(self, body: Any) -> Sequence[object]:
        raise NotImplementedError

    def receive(self, message: Any) -> None:
        raise NotImplementedError

    def new_epoch(self) -> None:
        raise NotImplementedError

    def acked(self, token: Any) -> None:
        """Handle an acknowledgement: the controller has the messages with this token on disk."""


class Client(Speaker):
    """Submits tasks with the real outbox, and records the messages that it gets."""

    role = "client"

    def __init__(self, world: World, session: str) -> None:
        super().__init__(world, session)
        self.outbox = Outbox()
        self.submitted: dict[int, Rules | None] = {}
        self.needs: dict[int, Needs] = {}
        self.told: dict[int, Final] = {}
        self.asked: dict[int, m.Question] = {}
        self.watch_behind: list[int] = []
        self.retried: set[int] = set()
        self.origin: dict[int, int] = {}
        """Retry -> the task that was submitted first."""
        self.cleared: set[int] = set()
        self.not_cleared: set[int] = set()
        """Those of which the answer said that others need them."""
        self.refused: set[int] = set()
        self.n = 0

    def decode(self, body: Any) -> Sequence[object]:
        return wire.to_client().decode(body)

    def submit(self, count: int, rules: Rules | None, needs: Needs | None = None) -> None:
        for _ in range(count):
            if not self.outbox.has_id():
                break
            task_id = self.outbox.add(Packed(b"work", rules=rules), self.world.clock.wall_s, needs=needs)
            self.submitted[task_id] = rules
            if needs is not None:
                self.needs[task_id] = needs

    def ask(self, question: m.Question) -> None:
        self.n += 1
        self.asked[self.n] = question
        if self.link.epoch:
            self.say(m.AskQuestion(self.n, question))

    def retriable(self) -> list[int]:
        """Return its own failed tasks; it also gets the ends of their children."""
        own = self.submitted.keys() - self.retried
        return [i for i, final in self.told.items() if final.reason and i in own]

    def retry(self, task_id: int) -> None:
        self.retried.add(task_id)
        self.ask(m.RetryTasks([task_id]))

    def clear(self, task_id: int) -> None:
        self.cleared.add(task_id)
        self.ask(m.Clear([task_id]))

    def speak(self) -> None:
        if self.greeted:
            if self.outbox.want_ids and not self.outbox.asked_ids:
                self.outbox.asked_ids = True
                self.say(m.NeedIds())
            while (chunk := self.outbox.next_to_send(self.world.clock.mono_s)) is not None:
                self.say(m.Submit(chunk.tasks, [Function(name, b"code") for name in "AB"]))  # of environments
            if self.watch_behind:
                # The controller may have accepted, and even finished, tasks that are unaccepted here.
                self.ask(m.WatchTasks(self.watch_behind))
                self.watch_behind = []
        super().speak()

    def new_epoch(self) -> None:
        self.outbox.new_epoch()
        unaccepted = self.outbox.unaccepted_ids()
        live = [i for i in self.submitted if i not in self.told and i not in unaccepted]
        self.watch_behind = sorted(unaccepted - self.told.keys())
        if live:
            self.asked[0] = m.WatchTasks(live)
        for n, question in list(self.asked.items()):
            self.say(m.AskQuestion(n, question))

    def receive(self, message: Any) -> None:
        if isinstance(message, m.IdBlock):
            self.outbox.block_came(message)
        elif isinstance(message, m.Accepted):
            self.outbox.accepted(message.blocks)
        elif isinstance(message, m.Full):
            self.outbox.full(message, self.world.clock.mono_s)
        elif isinstance(message, m.Answer):
            if isinstance(message.reply, m.Cleared):
                self.not_cleared.update(message.reply.needed)
            if self.asked.pop(message.n, None) is not None and isinstance(message.reply, m.Retried):
                for old, new in message.reply.ids:
                    self.submitted[new] = self.submitted[old]
                    self.origin[new] = self.origin.get(old, old)
                    self.ask(m.WatchTasks([new]))
        elif isinstance(message, m.Reopened):
            for task_id in message.ids:
                self.told.pop(task_id, None)
                self.ask(m.WatchTasks([task_id]))
        elif isinstance(message, m.Finals):
            for final in message.finals:
                if final.reason == "refused":
                    self.refused.add(final.id)
                known = self.told.setdefault(final.id, final)
                if final.id in self.world.reopened:
                    self.told[final.id] = final
                    continue
                assert known.reason == final.reason, f"task {final.id} was told {known.reason!r}, then {final.reason!r}"


class Engine:
    """The state of an engine's process and its flight recorder."""

    def __init__(self, name: str, engine_id: int) -> None:
        self.name = name
        self.id = engine_id
        self.queue: deque[RunKey] = deque()
        self.running: RunKey | None = None
        self.beside: dict[RunKey, None] = {}
        self.concurrent = False
        self.done: dict[RunKey, Ended] = {}
        self.back: dict[RunKey, None] = {}
        """Returned, and not acknowledged."""
        self.prepared = False
        self.finished = 0
        self.environment: Environment | None = None
        self.holding: tuple[RunKey, Allotment] | None = None
        self.recycling: tuple[tuple[str, Recycle], ...] = ()
        self.submitted: tuple[RunKey, int] | None = None
        """The run that has submitted children last, and under which number."""
        self.commands: set[tuple[str, int]] = set()
        """(session, n) of those it has run: none is run twice."""
        self.places: dict[RunKey, tuple[int, int]] = {}
        """Run -> (number of its hand-out, its place there)."""
        self.marked = (0, 0)
        """No run behind this place has begun, as the disk knows."""

    def mark(self, run: RunKey, ahead: int) -> None:
        """Let a run begin, and some behind it, as the disk knows it after a reboot."""
        self.marked = max(self.marked, *(self.places[each] for each in [run, *islice(self.queue, ahead)]))

    def held(self) -> list[RunKey]:
        return [*self.done, *([self.running] if self.running else []), *self.beside, *self.queue, *self.back]

    @property
    def ends_likely(self) -> float:
        """Return how likely its run ends now: parents live long, so that the controller dies while they do."""
        return 0.05 if self.submitted is not None and self.submitted[0] == self.running else 0.5

    def turn_to(self, run: RunKey) -> None:
        """Let one of the begun runs be the one that ends next."""
        if self.running is not None and run in self.beside:
            self.beside[self.running] = None
            del self.beside[run]
            self.running = run


class Agent(Speaker):
    """Relays messages, and keeps unacknowledged ones, like `agent.relay`."""

    role = "agent"

    def __init__(self, world: World, session: str, former: Agent | None, rebooted: bool = False) -> None:
        """Create it; `rebooted` says that the disk has the former agent's recorders as of some earlier moment."""
        super().__init__(world, session)
        self.engines: dict[str, Engine] = {}
        self.dying: dict[str, tuple[Engine, m.EngineDown]] = {}
        """Engines with a loss that is not on the controller's disk."""
        self.kept: dict[int, m.Returned | m.CommandDone] = {}
        self.former: list[str] = [*former.former, former.session] if former else []
        self.started = 0
        self.kept_count = 0
        self.stated = False
        for engine in list(former.engines.values()) if former else ():
            self.dying[engine.name] = engine, self._loss(engine)
        if former is not None:
            self.dying.update(former.dying)
        for engine, _ in list(self.dying.values()) if rebooted else ():
            self._forget_the_last(engine)
            lost = m.EngineDown(engine.name, engine.id, None, False, m.Crash(cause="reboot"), begun_upto=engine.marked)
            self.dying[engine.name] = engine, lost

    def decode(self, body: Any) -> Sequence[object]:
        return wire.to_agent().decode(body)

    def _loss(self, engine: Engine, known: bool = True, expected: bool = False) -> m.EngineDown:
        running, beside = (engine.running, tuple(engine.beside)) if known else (None, ())
        return m.EngineDown(engine.name, engine.id, running, known, m.Crash(signal=9), expected, None, beside)

    def _forget_the_last(self, engine: Engine) -> None:
        """The last results are not on the disk."""
        for run in list(engine.done)[self.world.chance.randint(0, len(engine.done)) :]:
            del engine.done[run]

    def tell(self, message: object) -> None:
        if self.stated:
            self.say(message)

    def new_epoch(self) -> None:
        self.stated = True
        wall_s = self.world.clock.wall_s
        reports = [
            m.EngineReport(
                e.name,
                e.id,
                1,
                True,
                wall_s,
                {},
                encode_runs(e.held()),
                prepared=e.prepared,
                finished=e.finished,
                environment=e.environment,
                set_up=e.environment is not None,
                holding=e.holding,
                recycling=e.recycling,
                concurrent=e.concurrent,
            )
            for e in self.engines.values()
        ]
        self.say(m.AgentState(self.session, 1, 2, 2**30, "linux", "3", reports, None, self.former))
        for engine in self.engines.values():
            self._say_results(engine, list(engine.done))
        for number, kept in self.kept.items():
            self.say(kept, ("kept", number))
        for engine, lost in self.dying.values():
            self._say_loss(engine, lost)
        for engine in self.engines.values():
            # A running task repeats its question: the answer may be lost with the controller.
            if engine.submitted is not None and engine.submitted[0] == engine.running:
                self.spawn(engine, engine.submitted[1])

    def _say_results(self, engine: Engine, runs: list[RunKey]) -> None:
        if runs and self.stated:
            self.say(m.Results(engine.name, [engine.done[run] for run in runs]), ("results", engine, runs))

    def _say_loss(self, engine: Engine, lost: m.EngineDown) -> None:
        if self.stated:
            self._say_results(engine, list(engine.done))
            self.say(lost, ("lost", engine.name))

    def acked(self, token: Any) -> None:
        if token[0] == "results":
            for run in token[2]:
                token[1].done.pop(run, None)
        elif token[0] == "kept":
            kept = self.kept.pop(token[1], None)
            engine = self.engines.get(kept.engine) if kept else None
            for run in kept.runs if isinstance(kept, m.Returned) and engine else ():
                engine.back.pop(run, None)  # type: ignore[union-attr]
        else:
            self.dying.pop(token[1], None)

    def receive(self, message: Any) -> None:
        if isinstance(message, m.StartEngine):
            self.started += 1
            engine = Engine(f"{self.session}.{self.started}", message.id)
            self.engines[engine.name] = engine
            self.tell(m.EngineUp(m.EngineReport(engine.name, engine.id, 1, True, self.world.clock.wall_s)))
            return
        if isinstance(message, m.Shutdown):
            return
        found = self.engines.get(getattr(message, "engine", ""))
        if found is not None:
            self._to_engine(found, message)

    def _to_engine(self, engine: Engine, message: Any) -> None:
        if isinstance(message, m.HandOut):
            batch = msgspec.msgpack.decode(message.batch, type=m.TaskBatch)
            assert [(run.task, run.attempt) for run in batch.runs] == message.runs
            assert all(run.payload in (b"work", b"recovery") for run in batch.runs)
            for run in batch.runs:
                self.world.check_needs(run)
            assert engine.environment in (None, message.environment), "an engine was given another environment"
            engine.environment, engine.recycling = message.environment, message.recycling
            if message.allotment is not None:
                engine.holding = message.runs[0], message.allotment
            mixed = bool(engine.running or engine.queue) and engine.concurrent != message.concurrent
            assert not mixed, "coroutines were handed to an engine beside other runs"
            engine.concurrent = message.concurrent
            assert all((run.special is not None and run.special.concurrent) == message.concurrent for run in batch.runs)
            engine.queue.extend(message.runs)
            engine.places.update({run: (batch.number, batch.first + n) for n, run in enumerate(message.runs)})
        elif isinstance(message, m.Recall):
            self._give_back(engine, [run for run in message.runs if run in engine.queue])
        elif isinstance(message, TaskReply):
            assert isinstance(message.reply, Spawned), f"the same children were refused: {message.reply}"
            known = self.world.spawned.setdefault((message.run, message.n), message.reply.ids)
            assert known == message.reply.ids, "a submission gave other children than before"
        elif isinstance(message, m.Interrupt):
            if message.run == engine.running or message.run in engine.beside:
                engine.turn_to(message.run)
                self.end(engine, "aborted")
            else:
                self._give_back(engine, [message.run] if message.run in engine.queue else [])
        elif isinstance(message, m.EngineCommand):
            name = message.session, message.n
            if name not in engine.commands:
                engine.commands.add(name)
                self.keep(m.CommandDone(engine.name, *name, True))
        elif isinstance(message, m.EnginePrepared):
            engine.prepared = True
        elif isinstance(message, m.StopEngine):
            self.kill(engine, True, expected=True)

    def _give_back(self, engine: Engine, runs: list[RunKey]) -> None:
        if not runs:
            return
        for run in runs:
            engine.queue.remove(run)
            engine.back[run] = None
        self.keep(m.Returned(engine.name, runs, "recalled"))

    def keep(self, message: m.Returned | m.CommandDone) -> None:
        """Say it until it is acknowledged."""
        self.kept_count += 1
        self.kept[self.kept_count] = message
        if self.stated:
            self.say(message, ("kept", self.kept_count))

    # -- what engines do

    def begin(self, engine: Engine) -> None:
        while engine.queue and (engine.running is None or engine.concurrent):
            run = engine.queue.popleft()
            # The first unanswered run needs no mark, if it is alone.
            if engine.queue or engine.done or self.world.chance.random() < 0.5:
                engine.mark(run, self.world.chance.randint(0, 2))
            self.world.begun[run[0]].append(run)
            if engine.running is not None:
                engine.beside[engine.running] = None
            engine.running = run

    def spawn(self, engine: Engine, n: int) -> None:
        """The running task submits children, again and again the same under the same number."""
        assert engine.running is not None
        engine.submitted = engine.running, n
        made = [Submission(-1 - i, b"work", 0.0) for i in range(n)]
        self.tell(TaskCall(engine.name, engine.running, n, Spawn(n, made)))

    def end(self, engine: Engine, outcome: str, word: Deferral | LostInputs | None = None) -> None:
        run, engine.running = engine.running, next(iter(engine.beside), None)
        engine.beside.pop(engine.running or (-1, -1), None)
        engine.finished += 1
        if run is None:
            return
        failure = FailureSummary("ValueError", "planted") if outcome else None
        engine.done[run] = Ended(run[0], run[1], outcome, self.world.clock.wall_s, 0.01, failure, b"body", (), 0, word)
        if not outcome:
            self.world.succeeded.add(run)
        self._say_results(engine, [run])

    def kill(self, engine: Engine, known: bool, expected: bool = False) -> None:
        del self.engines[engine.name]
        lost = self._loss(engine, known, expected)
        if not known:
            engine.done.clear()
        self.dying[engine.name] = engine, lost
        self._say_loss(engine, lost)
