"""The controller's own parts: the evaluator's clock, payloads, queue policies by name, answers from the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm.controller import __main__ as starting, evaluators
from ipytaskfarm.controller.blob_reading import ReadPiece
from ipytaskfarm.controller.cache_answers import CacheAnswers
from ipytaskfarm.controller.direct_answers import DirectAnswers
from ipytaskfarm.controller.evaluators import Evaluators
from ipytaskfarm.controller.loop import ControllerLoop
from ipytaskfarm.controller.payloads import Payloads
from ipytaskfarm.controller.policy import load_policy
from ipytaskfarm.controller.replies import answer, explain_final
from ipytaskfarm.core.errors import QueuePolicyError, SecurityError
from ipytaskfarm.core.messages import (
    AgentState,
    Answer,
    AskQuestion,
    CompactStore,
    EngineReport,
    Fetched,
    ListConnections,
    NeedIds,
    ReadHistory,
    Refusal,
    ReloadKeys,
    Submit,
    TaskBatch,
    TextReply,
)
from ipytaskfarm.core.messages.blob_chunks import ReadBlob
from ipytaskfarm.core.messages.evaluator import Evaluate, Evaluated, Subject
from ipytaskfarm.core.messages.tables import TaskRows
from ipytaskfarm.core.messages.task_types import AttemptRow, FailureSummary, Final, Rules, Submission
from ipytaskfarm.core.saves import Save, SaveBlock, SaveFinal, SaveFunction, SaveTask
from ipytaskfarm.core.scheduler.decision import Assignment, LoadExplanation, LoadFinals, LoadOriginals, LoadTable, Now
from ipytaskfarm.core.scheduler.events import Originals
from ipytaskfarm.core.scheduler.queue_policy import TaskInfo
from ipytaskfarm.core.scheduler.restore import restored_farm
from ipytaskfarm.core.scheduler.scheduler import Scheduler
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.serialization.pack import pack_function
from ipytaskfarm.storage.event_log import EventLog
from ipytaskfarm.storage.result_cache import ResultCache
from ipytaskfarm.storage.store import Store
from ipytaskfarm.transport.hub_session import Peer, PeerNewEpoch
from tests.support.polling import eventually

# -- the evaluator


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., Evaluated]]:
    """Ask a fresh evaluator about one engine with these facts; the answer."""
    codes: dict[str, bytes] = {}
    asked = Evaluators(codes.get, str(tmp_path))
    numbers = iter(range(1, 1000))

    def ask_it(function: Callable[..., object], **facts: object) -> Evaluated:
        packed = pack_function(function)
        codes[packed.digest] = packed.code
        number = next(numbers)
        asked.ask(Evaluate(number, packed.digest, [Subject("e.1", 3, facts)]))
        return eventually(lambda: [a for a in asked.answers() if a.n == number])[0]

    yield ask_it
    asked.close()


def test_verdicts_are_what_the_function_says(ask: Callable[..., Evaluated]) -> None:
    limit = 4
    assert ask(lambda properties: properties["RAM"] > limit, RAM=8).verdicts[0].fits
    verdict = ask(lambda properties: properties["RAM"] > limit, RAM=2).verdicts[0]
    assert (verdict.engine, verdict.version, verdict.fits, verdict.error) == ("e.1", 3, False, "")


def test_an_exception_is_no_and_says_why(ask: Callable[..., Evaluated]) -> None:
    verdict = ask(lambda properties: properties["absent"]).verdicts[0]
    assert not verdict.fits
    assert "KeyError" in verdict.error


def test_a_function_that_kills_the_evaluator_is_blamed_and_the_next_is_asked(ask: Callable[..., Evaluated]) -> None:
    verdict = ask(lambda properties: os._exit(3)).verdicts[0]
    assert not verdict.fits
    assert "exit code 3" in verdict.error
    assert ask(lambda properties: True).verdicts[0].fits


def test_a_function_that_hangs_is_blamed_and_the_next_is_asked(
    ask: Callable[..., Evaluated], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(properties: dict[str, object]) -> bool:
        while True:
            pass

    assert ask(lambda properties: True).verdicts[0].fits
    monkeypatch.setattr(evaluators, "TIME_LIMIT_S", 1.0)
    assert "within 1 s" in ask(hang).verdicts[0].error
    assert ask(lambda properties: True).verdicts[0].fits


def test_what_a_function_prints_does_not_break_the_protocol(ask: Callable[..., Evaluated]) -> None:
    def loud(properties: dict[str, object]) -> bool:
        print("x" * 10_000)
        os.write(1, b"y" * 100)
        return True

    assert ask(loud).verdicts[0].fits


# -- payloads


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    tmp_path.chmod(0o700)
    store = Store.open(tmp_path / "store.sqlite", farm_incarnation="f")
    yield store
    store.close()


def _task(task_id: int, payload: bytes = b"work", function: str | None = None) -> SaveTask:
    return SaveTask(task_id, task_id, payload, 1.0, function, Rules(name=f"t{task_id}"), "s")


def _batch(payloads: Payloads, *task_ids: int, function: str | None = None, engine: str = "e.1") -> TaskBatch:
    message = payloads.hand_out(
        Assignment("a", engine, [(i, 1, function, None, None, None, False, None) for i in task_ids])
    )
    assert message.runs == [(i, 1) for i in task_ids]
    return msgspec.msgpack.decode(message.batch, type=TaskBatch)


def test_payloads_come_from_memory_or_from_the_store(store: Store) -> None:
    saves: list[Save] = [SaveBlock(0, 9, "s"), *(_task(i, b"%d" % i * 100) for i in range(10))]
    store.commit(saves)
    payloads = Payloads(store, cache_bytes=700)  # room for three
    payloads.keep(saves)
    assert [run.payload for run in _batch(payloads, *range(10)).runs] == [b"%d" % i * 100 for i in range(10)]
    # A retry: the memory of it is gone, the store has it.
    assert _batch(payloads, 0).runs[0].payload == b"0" * 100


def test_an_engine_is_sent_a_function_once(store: Store) -> None:
    saves: list[Save] = [SaveBlock(0, 9, "s"), SaveFunction("d", b"code"), *(_task(i, function="d") for i in range(3))]
    store.commit(saves)
    payloads = Payloads(store)
    assert [f.code for f in _batch(payloads, 0, function="d").functions] == [b"code"]
    assert not _batch(payloads, 1, function="d").functions
    assert _batch(payloads, 1, function="d", engine="e.2").functions
    payloads.forget_engine("e.1")
    assert _batch(payloads, 2, function="d").functions
    payloads.forget_agents(["e"])
    assert not payloads._sent


# -- policies


def test_a_policy_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_policy.py").write_text(
        "from ipytaskfarm.policies import QueuePolicy\n"
        "class Odd(QueuePolicy):\n"
        "    def key(self, task):\n"
        "        if task.id == 13: raise LookupError('13')\n"
        "        return task.id % 2 == 0\n"
    )
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    key = load_policy("mine_policy:Odd", [str(tmp_path)])
    ordered = sorted((TaskInfo(i, 0, "c", i, 0) for i in (2, 3, 13)), key=lambda t: (key(t), t.queue_seq))
    assert ordered[0].id == 3
    assert {t.id for t in ordered} == {2, 3, 13}


@pytest.mark.parametrize(
    ("name", "says"),
    [("nonsense", "module:Class"), ("no_such_module:X", "policy-path"), ("ipytaskfarm.policies:Absent", "Absent")],
)
def test_a_policy_that_cannot_be_loaded_stops_the_start(name: str, says: str) -> None:
    with pytest.raises(QueuePolicyError, match=says):
        load_policy(name, [])


def test_a_policy_that_raises_at_once_stops_the_start() -> None:
    with pytest.raises(QueuePolicyError, match="NotImplementedError"):
        load_policy(f"{__name__}:Unfinished", [])


from ipytaskfarm.policies import QueuePolicy  # noqa: E402 - it belongs to the test above


class Unfinished(QueuePolicy):
    """Without `key`; its module differs from the farm's own policies."""


# -- the loop: nothing leaves before its commit


class Diary:
    """A store and a hub that write down in which order they are used."""

    def __init__(self, store: Store, heard: list[tuple[Peer, object]]) -> None:
        self.lines: list[str] = []
        self._store = store
        self._heard = heard

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def commit(self, saves: list[Save]) -> list[int]:
        self.lines.append("commit " + " ".join(type(save).__name__ for save in saves))
        return self._store.commit(saves)

    def settle(self) -> None:
        self.lines.append("settle")
        self._store.settle()

    def poll(self, timeout_s: float, fds: object) -> set[int]:
        return set()

    def receive(self, limit: int = 256) -> list[tuple[Peer, object]]:
        heard, self._heard = self._heard, []
        return heard

    def send(self, session: str, message: object, *, can_wait: bool = False) -> bool:
        self.lines.append(f"send {session} {type(message).__name__}")
        return True

    def backlog_bytes(self, session: str) -> int:
        return 0

    def charge_answer(self, session: str, seconds: float) -> None:
        pass

    def flush(self, now_s: float) -> None:
        self.lines.append("flush")


def test_a_turn_commits_sends_acknowledges_and_settles_in_this_order(store: Store, tmp_path: Path) -> None:
    client, agent = Peer("c", "client", "c"), Peer("a", "agent", "a")
    report = EngineReport("a.1", 0, 1, True, 1.0, prepared=True)
    heard: list[tuple[Peer, object]] = [
        (client, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (agent, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (agent, AgentState("n", 1, 1, 1, "linux", "3.11", [report])),
        (client, NeedIds()),
        (client, Submit([Submission(0, b"work", 1.0)])),
    ]
    diary = Diary(store, heard)
    farm = restored_farm("f", store.load(), SchedulerSettings(), Now(1.0, 1.0))
    farm.lifecycle.wanted = 1
    loop = ControllerLoop(Scheduler(farm), diary, diary, tmp_path)  # type: ignore[arg-type]
    loop.turn()
    commit, *rest = diary.lines
    assert commit.startswith("commit ")
    for saved in ("SaveBlock", "SaveTask", "SaveAccepted", "SaveHandOut"):
        assert saved in commit
    assert {"send c IdBlock", "send c Accepted", "send a HandOut"} <= set(rest[:-2])
    assert rest[-2:] == ["flush", "settle"]
    assert diary.lines.count("flush") == 1


def test_a_full_disk_ends_a_recording_and_not_the_epoch(store: Store, tmp_path: Path) -> None:
    client = Peer("c", "client", "c")
    diary = Diary(store, [(client, PeerNewEpoch(None)), (client, NeedIds())])  # type: ignore[arg-type]
    farm = restored_farm("f", store.load(), SchedulerSettings(), Now(1.0, 1.0))
    file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - the log closes it
    loop = ControllerLoop(Scheduler(farm), diary, diary, tmp_path, event_log=EventLog(file))  # type: ignore[arg-type]
    loop.turn()
    assert "send c IdBlock" in diary.lines
    assert file.closed
    loop.turn()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SecurityError("it is a link")])
def test_a_dump_of_events_that_cannot_be_written_does_not_end_a_turn(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise error

    class Events:
        recent = ((1.0, "c", "NeedIds"),)

    monkeypatch.setattr("ipytaskfarm.system.farm_paths.write_private", fail)
    starting._dump(Events(), tmp_path)  # type: ignore[arg-type]
    assert f"the last events were not written: {error}" in caplog.text


def test_a_question_that_decides_nothing_is_answered_after_the_commit_and_not_scheduled(
    store: Store, tmp_path: Path
) -> None:
    client = Peer("c", "client", "c")
    heard: list[tuple[Peer, object]] = [
        (client, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (client, AskQuestion(1, ReadHistory())),
        (client, AskQuestion(2, CompactStore())),
        (client, AskQuestion(3, ListConnections())),
        (client, NeedIds()),
    ]
    diary = Diary(store, heard)
    farm = restored_farm("f", store.load(), SchedulerSettings(), Now(1.0, 1.0))
    loop = ControllerLoop(Scheduler(farm), diary, diary, tmp_path)  # type: ignore[arg-type]
    loop.turn()
    assert diary.lines[:4] == ["commit SaveBlock", "send c IdBlock", *["send c Answer"] * 2]
    assert [what for _, _, what in loop.recent] == ["Joined", "NeedIds", "StoreRoom"]
    # The history is read in a thread: it takes as long as there are tasks.
    eventually(lambda: loop.turn() or diary.lines.count("send c Answer") == 3, 30.0)
    loop._view_answers.close()
    direct = DirectAnswers(store, None, list.clear, CacheAnswers(store, ResultCache.off()))
    assert type(direct.answer(1, ReloadKeys()).reply) is Refusal


class Pieces:
    """In the place of the thread that reads blobs: who may have them."""

    def __init__(self) -> None:
        self.asked: list[ReadPiece] = []
        self.ask = self.asked.append

    def fd(self) -> int:
        return -1

    def answers(self) -> list[tuple[str, object]]:
        return []

    def go_on(self, backlog_bytes: Callable[[str], int]) -> None:
        pass


def test_pieces_of_blobs_go_to_clients_and_to_agents_that_are_registered(store: Store, tmp_path: Path) -> None:
    """This holds even in the turn in which an agent registers."""
    client, agent, stranger = Peer("c", "client", "c"), Peer("a", "agent", "a"), Peer("s", "agent", "s")
    wanted = ReadBlob(b"\xab" * 32)
    heard: list[tuple[Peer, object]] = [
        (stranger, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (stranger, wanted),
        (agent, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (agent, AgentState("n", 1, 1, 1, "linux", "3.11", [])),
        (agent, wanted),
        (client, AskQuestion(7, wanted)),
    ]
    diary, pieces = Diary(store, heard), Pieces()
    farm = restored_farm("f", store.load(), SchedulerSettings(), Now(1.0, 1.0))
    loop = ControllerLoop(Scheduler(farm), diary, diary, tmp_path, reader=pieces)  # type: ignore[arg-type]
    loop.turn()
    assert [(piece.session, piece.n) for piece in pieces.asked] == [("a", None), ("c", 7)]


# -- answers from the store


def test_answers_from_the_store(store: Store) -> None:
    row = AttemptRow(1, 2, "node", 1.0, 2.0, "error", FailureSummary("ValueError", "first"))
    final = Final(
        0, "error", 2, "node", 2, 1.0, 3.0, 0.5, 4.0, FailureSummary("ValueError", "second", "cell:1"), b"body", [row]
    )
    store.commit([SaveBlock(0, 9, "s"), _task(0), SaveFinal(final)])
    session, fetched = answer(store, LoadFinals("c", 5, [0], [1], [2], []))
    assert isinstance(fetched, Answer)
    assert (session, fetched.n) == ("c", 5)
    assert isinstance(fetched.reply, Fetched)
    assert fetched.reply.finals[0].body == b"body"
    assert (fetched.reply.unfinished, fetched.reply.unknown) == ([1], [2])
    _, table = answer(store, LoadTable("c", 6, [0], [], [], "t0"))
    assert isinstance(table, Answer)
    assert isinstance(table.reply, TaskRows)
    assert [r.id for r in table.reply.rows] == [0]
    _, none = answer(store, LoadTable("c", 6, [0], [], [], "other"))
    assert isinstance(none, Answer)
    assert isinstance(none.reply, TaskRows)
    assert not none.reply.rows
    _, originals = answer(store, LoadOriginals("c", 7, [0], [], []))
    assert isinstance(originals, Originals)
    assert originals.tasks[0].rules == Rules(name="t0")
    _, text = answer(store, LoadExplanation("c", 8, 0))
    assert isinstance(text, Answer)
    assert isinstance(text.reply, TextReply)
    assert "ValueError: second (cell:1)" in text.reply.text


def test_the_explanation_of_a_failure_tells_every_attempt() -> None:
    row = AttemptRow(1, 2, "node", 1.0, 2.0, "error", FailureSummary("ValueError", "first"))
    final = Final(7, "error", 3, "n", 2, 1.0, 3.0, 0.5, 4.0, FailureSummary("ValueError", "second"), b"", [row])
    text = "\n".join(explain_final(final))
    assert "task 7 failed: error on engine 3 (n)" in text
    assert "attempt 1 on engine 2 (node): error: ValueError: first" in text
