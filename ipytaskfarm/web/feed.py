"""Follows a farm for the pages that show it: one connection, one picture and one log of deltas for all of them.

A feed lives in an asyncio loop. It connects when the first page is opened, and closes its connection when the last one
has been gone for a while. A farm that is gone is looked for again and again; the page says so, and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ipytaskfarm.core import errors, messages
from ipytaskfarm.core.messages import CommandAnswer, FarmChanges, Output, Question, Refusal, Reply, view
from ipytaskfarm.core.messages.pages import of_kind
from ipytaskfarm.core.messages.tables import ConnectionRow, ConnectionTable, FarmState
from ipytaskfarm.core.text import text_of
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import Questioner, refusal_error
from ipytaskfarm.display.text import OUTPUT_S
from ipytaskfarm.system.farm_paths import ConnectionInfo, connection_reader
from ipytaskfarm.transport.keys import info_for, load_keys
from ipytaskfarm.transport.peer import NEVER_CONNECTED
from ipytaskfarm.version import __version__
from ipytaskfarm.view.fold import FarmFold
from ipytaskfarm.view.picture import Delta, DeltaLog, PictureData

R = TypeVar("R")

LINGER_S = 60.0
"""How long the connection is kept without a page."""
SILENCE_S = 5.0
"""A follower that hears nothing for this time asks again: its session was silent, and was dropped."""
RETRY_S = 2.0
ENGINES_EVERY_S, MANY_ENGINES_EVERY_S = 1.0, 2.0
ENGINES_SHOWN = 100
WAITING_EVERY_S = 1.5
TABLES_EVERY_S = 2.0
DOUBLED_MAX = 5
"""How often this time is doubled at most."""
VERSIONS_EVERY_S = 10.0
VERSIONS_NODES_MAX = 500
"""On a larger farm clients are not asked for their versions: the table of connections has the agents too."""
ASKED_S = 20.0
"""How long a page waits for an answer of the farm."""
AWAY_S = 3.0
"""How long a question waits for a connection that is lost."""
TICK_S = 0.25
NUMBERS = frozenset({"farm", "counts", "engine_states", "jobs_more", "waiting"})
"""A picture that has these sections can be shown: the controller answers these questions from memory."""
FIRST_SECTIONS = NUMBERS | {"causes_more"}
"""A picture that has these sections is complete: everything was asked for once."""
NUMBERS_S = 1.0
"""How long pages of another epoch keep the old picture while the new one has no numbers."""
LONG_SECTIONS = frozenset({"stretches", "series"})
"""What a page gets a moment after the numbers."""
BEFORE_S = 300.0
"""The stream begins this time before the connection."""
PAST_ROWS_MAX = 20_000
"""With this number of stretches of that time nothing older is asked for."""


_ADDRESS = re.compile(r"(/\S+|\S+:\d+): ")


class Page(Protocol):
    """An open page."""

    def tell(self, delta: Delta) -> None: ...

    def show(self) -> None:
        """Send the whole picture."""


class _Looker:
    """A page that nobody sees: it lets a feed follow its farm for a moment."""

    def tell(self, delta: Delta) -> None:
        pass

    def show(self) -> None:
        pass


class FarmFeed:
    """Follows one farm.

    Args:
        name: the farm's name, for people.
        read_info: returns the connection file.
        control: whether pages may act, which needs a client's key.
        within_client: whether this process is a client of the farm too, as a kernel is, and no server of pages alone.
    """

    def __init__(
        self, name: str, read_info: Callable[[], ConnectionInfo], control: bool, within_client: bool = False
    ) -> None:
        self.name = name
        self.control = control
        self._within_client = within_client
        self._read_info = read_info
        self._pages: dict[Page, None] = {}
        self._questioner: Questioner | None = None
        self._fd: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle_since_s: float | None = float("-inf")
        """Since when there is no page; None: there are pages."""
        self._asked_s = float("-inf")
        """When somebody has asked for an answer."""
        self._epoch = 0
        self._follows = False
        self._heard_s = 0.0
        self._problem = ""
        self._answered_s = 0.0
        self._seen_s = 0.0
        """When (wall clock) the farm was up; 0: not yet."""
        self._since_s = 0.0
        """Since when (wall clock) the farm tells what happens."""
        self._next: dict[str, float] = {}
        """What is asked for again and again -> when."""
        self._looking = asyncio.Lock()
        """Held while one task's output is asked for: what comes is this task's."""
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()
        self._numbers = asyncio.Event()
        """Set when the picture has `NUMBERS`, or it is known why there are none."""
        self._begin_picture()

    def _begin_picture(self) -> None:
        """Begin a picture of another farm or epoch.  Pages show the old one until this one has numbers."""
        self.fold = FarmFold()
        self.log = DeltaLog(uuid.uuid4().hex[:12])
        self.fold.picture.taken()
        self._numbers.clear()
        self._renewed = True
        self._numbers_by_s = time.monotonic() + NUMBERS_S

    @property
    def incarnation(self) -> str:
        """Return the incarnation of the farm that is shown; "" if it was never reached and has no connection file."""
        known: str = self.fold.picture.data.get("farm", {}).get("incarnation", "")
        if known:
            return known
        try:
            return self._read_info().incarnation
        except (errors.TaskFarmError, OSError):
            return ""

    @property
    def is_followed(self) -> bool:
        """Return whether it follows its farm, for pages or for what was asked a moment ago."""
        return self._task is not None and not self._task.done()

    # -- pages

    def open(self, page: Page) -> None:
        """Tell this page what happens from now on."""
        self._pages[page] = None
        self._idle_since_s = None
        self._wake()

    def close(self, page: Page) -> None:
        """Tell this page no more."""
        self._pages.pop(page, None)
        if not self._pages:
            self._idle_since_s = time.monotonic()

    def look(self) -> None:
        """Follow the farm for a moment, because a page is probably about to be opened."""
        looker = _Looker()
        self.open(looker)
        self.close(looker)

    async def first_picture(self, patience_s: float = 5.0) -> PictureData:
        """Return the picture of a farm that perhaps nobody has looked at until now; after a while as it is."""
        self.look()
        deadline_s = time.monotonic() + patience_s
        while not self.fold.picture.data.keys() >= FIRST_SECTIONS and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        return self.fold.picture.data

    async def numbers(self, patience_s: float = NUMBERS_S) -> PictureData:
        """Return what a page shows first, without `LONG_SECTIONS`; after a while what there is of it."""
        self.look()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._numbers.wait(), patience_s)
        self._say_how_it_is()
        return {name: value for name, value in self.fold.picture.data.items() if name not in LONG_SECTIONS}

    def _wake(self) -> None:
        if not self.is_followed:
            self._problem = ""  # of the last time: the farm may be there again
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._disconnect()

    # -- the connection

    async def _run(self) -> None:
        try:
            while self._is_watched() or time.monotonic() - self._asked_s < LINGER_S:
                self._tick()
                await asyncio.sleep(TICK_S if self._questioner is not None else RETRY_S / 4)
        finally:
            self._disconnect()

    def _is_watched(self) -> bool:
        """Return whether a page is open, or was until a moment ago."""
        return self._idle_since_s is None or time.monotonic() - self._idle_since_s < LINGER_S

    def _tick(self) -> None:
        if self._questioner is None:
            self._connect()
        if self._questioner is not None:
            self._step()
        if self._questioner is not None and self._questioner.epoch:
            if self._is_watched():
                self._keep_asking()
            elif self._follows:
                self._follows = False
                self._ask(messages.FollowFarm(False), lambda reply: None)
        self._say_how_it_is()
        self._tell()

    def _connect(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next.get("connect", 0.0):
            return
        self._next = {"connect": now_s + RETRY_S}
        try:
            questioner = Questioner(self._read_info, self._on_changes)
            questioner.step()
        except (errors.TaskFarmError, OSError) as error:
            self._problem = text_of(error)
            return
        self._questioner, questioner.on_output = questioner, self._outputs.put_nowait
        self._epoch, self._follows, self._answered_s = 0, False, 0.0
        (self._fd,) = questioner.fds()
        asyncio.get_running_loop().add_reader(self._fd, self._step)

    def _disconnect(self) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._fd = None
        if self._questioner is not None:
            self._questioner.close()
            self._questioner = None

    def _step(self) -> None:
        questioner = self._questioner
        if questioner is None:
            return
        try:
            questioner.step()
        except (errors.TaskFarmError, OSError) as error:
            questioner.refused = error
        if questioner.refused is not None:
            self._problem = text_of(questioner.refused)
            self._disconnect()
        elif questioner.epoch != self._epoch:
            self._on_new_epoch(questioner.epoch)

    def _on_new_epoch(self, epoch: int) -> None:
        """Begin again: another controller, perhaps of another farm, has everything from its store."""
        if self._epoch:
            self._begin_picture()
        self._epoch, self._follows, self._problem = epoch, False, ""
        if not self.fold.picture.data.keys() >= NUMBERS:
            self._numbers.clear()
            self._numbers_by_s = time.monotonic() + NUMBERS_S
        self.fold.needs_tables = True
        self._next = {}
        self._ask(messages.FarmStatus(engines=False), self._on_farm_state)

    def _on_farm_state(self, reply: Reply) -> None:
        """Show the farm, then follow it and ask for its past: if these came first, they could go with another farm's
        picture. Between them nothing may end, or the stream would lack it."""
        if isinstance(reply, FarmState):
            known = self.fold.picture.data.get("farm", {}).get("incarnation", reply.incarnation)
            if known != reply.incarnation:  # another farm of this name: nothing of the old one is shown
                self._begin_picture()
                self._next = {}
            self.fold.farm_state(reply, __version__)
        self._follows = False
        if self._is_watched():
            self._keep_asking()

    def _ask_past(self) -> None:
        """Ask for the runs that ended before it was followed, as it is from now on."""
        since_s = self._since_s = time.time()
        self.fold.forget_stretches()

        rows: list[view.Stretch] = []

        def ask(before: int | None) -> None:
            self._ask(view.ReadStretches(since_s - BEFORE_S, since_s, before), answered)

        def answered(reply: Reply) -> None:
            if not isinstance(reply, view.StretchTable) or self._since_s != since_s:  # it was asked for again meanwhile
                return
            rows.extend(reply.rows)
            if reply.next is not None and len(rows) < PAST_ROWS_MAX:
                ask(reply.next)
            else:
                self.fold.past_stretches(view.StretchTable(rows, reply.next, reply.first_s), since_s)

        ask(None)

    def _on_changes(self, changes: FarmChanges) -> None:
        self._heard_s = self._answered_s = time.monotonic()
        self.fold.changes(changes)
        self._tell()

    def _say_how_it_is(self) -> None:
        """Say in the picture whether the farm answers."""
        questioner = self._questioner
        now_s = time.monotonic()
        if questioner is not None and questioner.epoch and not questioner.problem:
            quiet = now_s - max(self._heard_s, self._answered_s) > SILENCE_S and self._follows
            text = f"farm {self.name!r} is connected, but does not answer" if quiet else ""
            status: dict[str, Any] = {"state": "quiet" if quiet else "up", "text": text}
        else:
            tries = questioner is not None and questioner.problem in ("", NEVER_CONNECTED)
            why = self._problem if questioner is None or tries else _unreached(questioner.problem)
            if why:
                self._numbers.set()
            status = {"state": "gone" if why else "connecting", "text": why}
        if status["state"] == "up":
            self._seen_s = time.time()
        elif self._seen_s:
            status["seen_s"] = round(self._seen_s, 1)
        self.fold.picture.set("status", status)

    # -- asking

    def _keep_asking(self) -> None:
        now_s = time.monotonic()
        if not self._follows or now_s - self._heard_s > SILENCE_S:
            self._follow()
        # While tasks fail all the time the tables are never quite right, and reading them costs the more.
        if self.fold.needs_tables and self._is_due("tables", TABLES_EVERY_S * 2 ** min(self.fold.doubts, DOUBLED_MAX)):
            self.fold.tables_asked()
            self._ask(messages.ReadJobs(), self._on_jobs)
        many = self.fold.picture.data.get("engines_total", 0) > 50
        if self._is_due("engines", MANY_ENGINES_EVERY_S if many else ENGINES_EVERY_S):
            self._ask(messages.ReadEngines(count=ENGINES_SHOWN), self._on_engines)
        if self._is_due("waiting", WAITING_EVERY_S):
            self._ask(messages.WhyWaiting(), self._on_waiting)
        if "nodes" in self.fold.picture.data and self._is_due("versions", VERSIONS_EVERY_S):
            self._ask_versions()

    def _ask_versions(self) -> None:
        """Compare versions.  Readers may not ask for the connections of others: their page compares itself alone."""
        if self.control and self.fold.picture.data.get("nodes_total", 0) <= VERSIONS_NODES_MAX:
            self._ask(messages.ListConnections(), self._on_connections)
        else:
            self._note_versions([])

    def _on_connections(self, reply: Reply) -> None:
        if isinstance(reply, ConnectionTable):
            own = "" if self._within_client else f" {os.getpid()}"
            self._note_versions([row for row in reply.rows if not own or not row.name.endswith(own)])

    def _note_versions(self, clients: list[ConnectionRow]) -> None:
        questioner = self._questioner
        assert questioner is not None
        self.fold.versions(__version__, questioner.farm_version, clients)

    def _follow(self) -> None:
        """Ask for the changes from now on, for the tables on which they build, and for the past."""
        followed, self._follows = self._follows, True
        self._heard_s = time.monotonic()
        self._ask(messages.FollowFarm(), lambda reply: None)
        self.fold.needs_tables = True
        if not followed:
            self._ask_past()

    def _is_due(self, what: str, every_s: float) -> bool:
        """Return whether it is time to ask, and no earlier question of this kind is open."""
        now_s = time.monotonic()
        if now_s < self._next.get(what, 0.0):
            return False
        self._next[what] = now_s + every_s
        return True

    def _on_jobs(self, reply: Reply) -> None:
        if isinstance(reply, view.JobPage):
            self.fold.job_page(reply, time.time())
        self._ask(messages.ReadCauses(jobs=self.fold.jobs_to_count()), self._on_causes)

    def _on_causes(self, reply: Reply) -> None:
        if isinstance(reply, view.CauseTable):
            self.fold.cause_table(reply)

    def _on_engines(self, reply: Reply) -> None:
        if isinstance(reply, view.EnginePage):
            self.fold.engine_page(reply)

    def _on_waiting(self, reply: Reply) -> None:
        if isinstance(reply, view.WaitingTable):
            self.fold.waiting_table(reply)

    def _ask(self, question: Question, then: Callable[[Reply], None]) -> int:
        """Ask, and return the question's number."""
        questioner = self._questioner
        assert questioner is not None

        def answered(reply: Reply) -> None:
            self._answered_s = time.monotonic()
            if self._questioner is questioner:
                then(reply)
                self._note_numbers()

        number = questioner.ask(question, answered)
        asyncio.get_running_loop().call_soon(self._step)
        return number

    async def answer(self, question: Question) -> Reply:
        """Ask the farm for a page.

        Raises:
            FarmNotRunning: there is no connection, or no answer in time.
            Exception: the error that a refusal names.
        """
        self._asked_s = time.monotonic()
        deadline_s = self._asked_s + ASKED_S
        self._wake()
        away_s = self._asked_s + AWAY_S
        while (questioner := self._questioner) is None or not questioner.epoch or questioner.problem:
            self._wake()
            now_s = time.monotonic()
            problem = "" if questioner is None else questioner.problem.replace(NEVER_CONNECTED, "")
            if now_s > (away_s if problem else deadline_s) or self._problem:
                why = self._problem or _unreached(problem)
                raise errors.FarmNotRunning(why or f"farm {self.name!r} does not answer")
            await asyncio.sleep(0.05)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        number = self._ask(question, lambda reply: None if future.done() else future.set_result(reply))
        try:
            reply = await asyncio.wait_for(future, max(0.1, deadline_s - time.monotonic()))
        except TimeoutError:
            questioner.forget(number)  # the controller that comes next shall not do what the page has given up
            raise errors.FarmNotRunning(f"farm {self.name!r} does not answer within {ASKED_S:g} s") from None
        if isinstance(reply, Refusal):
            raise refusal_error(reply)
        return reply

    async def answer_for(self, question: Question, expected: type[R]) -> R:
        """Return the farm's reply to a question, as `answer` does.  Raises TypeError for a reply of another type."""
        return of_kind(await self.answer(question), expected, question)

    async def latest_output(self, task: int) -> tuple[str, str] | None:
        """Return the end of what a running task has written: (stdout, stderr); None: it does not run, or its engine
        does not answer.
        """
        async with self._looking:
            while not self._outputs.empty():
                self._outputs.get_nowait()
            if (await self.answer_for(messages.Outputs.latest(task), messages.NumberReply)).value:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(OUTPUT_S):
                        while (texts := (await self._outputs.get()).texts_of(task)) is None:
                            pass
                        return texts
        return None

    async def command(self, engines: list[int], verb: str, body: bytes, patience_s: float) -> list[CommandAnswer]:
        """Send a command to engines, and return the answers that come in time.

        Raises:
            FarmNotRunning: the farm does not answer.
        """
        await self.answer(messages.QueueStatus())  # waits for the connection, and says why there is none
        questioner, answers, over = self._questioner, list[CommandAnswer](), asyncio.Event()
        if questioner is None:
            raise errors.FarmNotRunning(self._problem or f"farm {self.name!r} does not answer")

        def answered(answer: CommandAnswer) -> None:
            answers.append(answer)
            if len(answers) >= len(engines) or answer.engine_id not in engines:
                over.set()

        number = questioner.command(engines, verb, body, answered)
        asyncio.get_running_loop().call_soon(self._step)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), patience_s)
        questioner.forget(number)
        return answers

    # -- telling

    def _note_numbers(self) -> None:
        """Tell pages at once when the picture has come so far that it can be shown."""
        if not self._numbers.is_set() and self.fold.picture.data.keys() >= NUMBERS:
            self._numbers.set()
            self._say_how_it_is()
            self._tell()

    def _tell(self, at_once: bool = False) -> None:
        """Tell pages what has changed.  Of another epoch they hear when there are numbers, unless it is `at_once`."""
        early = self._epoch and not self._numbers.is_set() and time.monotonic() < self._numbers_by_s
        if early and not at_once:
            return
        delta = self.log.add(self.fold.picture.taken())
        if self._renewed:
            self._renewed = False
            for page in list(self._pages):
                page.show()
        elif delta is not None:
            for page in list(self._pages):
                page.tell(delta)

    def hello(self, known: Any, number: Any) -> dict[str, Any] | list[Delta]:
        """Return what a page needs that knows this picture up to this number: the deltas, or everything."""
        self._tell(at_once=True)
        deltas = self.log.since(known, number)
        if deltas is not None:
            return deltas
        return {
            "type": "picture",
            "name": self.log.name,
            "number": self.log.number,
            "picture": self.fold.picture.data,
            "control": self.control,
            "at_s": time.time(),
        }


def _unreached(problem: str) -> str:
    """Return a sentence about what keeps a connection away; "127.0.0.1:9999: nothing listens there" is none yet."""
    return f"no connection to the controller ({problem})" if _ADDRESS.match(problem) else problem


def page_connection(farm: str, control: bool) -> Callable[[], ConnectionInfo]:
    """Return a function that reads the connection file of a farm, with a reader's key unless pages may act.

    On another machine than the farm's own there are no keys but the one in the file: then it is used, and the feed
    itself keeps pages from acting.

    Args:
        farm: the farm's name, or the path of its connection file.
        control: whether pages may act.
    """
    read = connection_reader(farm)

    def connection() -> ConnectionInfo:
        info = read()
        if control:
            if info.role == "reader":
                raise errors.SecurityError(
                    f"the connection file of farm {info.farm!r} is for readers, who may change nothing:"
                    " leave --control out"
                )
            return info
        try:
            keys = load_keys(Home.of(info.farm).folder) if info.role == "client" else None
        except (errors.TaskFarmError, OSError, ValueError):
            keys = None
        # A farm of the same name may be here and there: its keys fit only its own connection file.
        if keys is None or keys.client.public != info.public_key:
            return info
        return info_for(info, keys, "reader")

    return connection
