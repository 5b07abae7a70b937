"""The simulation holds for many seeds, and it would not for a farm with its heart torn out."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support import simulation
from tests.support.thorough import THOROUGH, by_hand, some

ROOT = Path(__file__).parents[2]
SEEDS = some(500, 1000)
EVENTS = 200
TRIED = 400
"""Seeds in which each mutation must show."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.timeout(600)  # it does nothing but compute: 27 s, and several times that on a busy machine
def test_hundreds_of_lives_of_a_farm() -> None:
    deaths: Counter[str] = Counter()
    for seed in range(SEEDS):
        try:
            deaths += simulation.run(seed, EVENTS)
        except AssertionError as error:
            raise AssertionError(f"seed {seed} (python -m tests.support.simulation {seed}): {error}") from error
    assert all(deaths[where] > SEEDS // 6 for where in (*simulation.KILL_POINTS, "in recovery")), deaths


PYTEST = ("pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:nbval")
CAUGHT_ELSEWHERE = {
    "forget what waits for a reopened task": "tests/simulated/test_scheduler_graphs.py",
    "lose the ring": "tests/unit/test_agent.py::test_no_engine_survives_its_agent_and_the_next_agent_tells_of_them",
}
"""The others are caught by the simulation."""
SHOWS_FIRST = {
    "charge what was sent ahead": 5,
    "double-deliver": 67,
    "drop the attempt check": 60,
    "forget needs that had failed": 30,
    "forget what a retry came to": 29,
    "forget what agents hold": 5,
    "give back coroutines that had begun": 9,
    "give back what had begun": 60,
    "submit children twice": 84,
}
"""A seed with which those show that need many: it is tried before the others.  Changes of the code change them, and a
test of this file that takes more than three seconds asks for a new one.
"""
COMMIT = "        if out.saves:\n            self._commit(out)\n"
SEND = "        self._perform(out)\n"
FLUSH = "        self._hub.flush(now.mono_s)\n"

MUTATIONS = {
    "drop the attempt check": (
        "core/scheduler/entries.py",
        "type(place) is Assigned and place.engine == engine and place.attempt == run[1]",
        "type(place) is Assigned",
    ),
    "lose the ring": (
        "agent/relay.py",
        "= self._runs, _OPEN if self.former else None",
        "= self._runs, None",
    ),
    "send before the commit": ("controller/loop.py", COMMIT + SEND, SEND + FLUSH + COMMIT),
    "forget the resend": (
        "transport/reliable_session.py",
        "        self._on_connection = 0\n        self._ack_told",
        "        self._ack_told",
    ),
    "forget the client's resend": ("client/outbox.py", "self._unsent.extendleft(reversed(self._sent))\n", "pass\n"),
    "charge what was sent ahead": (
        "core/handlers/losses.py",
        "    begun = {event.running, *event.beside}\n",
        "    begun = set(engine.assigned)\n",
    ),
    "give back what had begun": (
        "core/handlers/losses.py",
        "begun = _may_have_begun(farm, engine, event.begun_upto)",
        "begun = {event.running}",
    ),
    "give back coroutines that had begun": (
        "core/handlers/losses.py",
        "    begun = {event.running, *event.beside}\n",
        "    begun = {event.running}\n",
    ),
    "hand coroutines to an engine that runs another task": (
        "core/scheduler/placement.py",
        "return task_class.quick and engine.not_quick == 0",
        "return task_class.concurrent or task_class.quick and engine.not_quick == 0",
    ),
    "double-deliver": (
        "transport/reliable_session.py",
        "        if number != self._last_in + 1:\n",
        "        if number > self._last_in + 1:\n",
    ),
    "forget what a retry came to": (
        "core/handlers/clients.py",
        "    if known is not None:\n",
        "    if known is not None and False:\n",
    ),
    "forget what agents hold": (
        "core/handlers/agents.py",
        "    _reconcile(farm, engine, report, now, out)\n",
        "",
    ),
    "forget what waits for a reopened task": ("core/scheduler/graph.py", "    _hold_back(farm, again)\n", ""),
    "begin before what it waits for": (
        "core/scheduler/transitions.py",
        "    if task.waits_for:\n        why = FOR_TASKS\n",
        "    if False:\n        why = FOR_TASKS\n",
    ),
    "forget needs that had failed": (
        "core/scheduler/waits.py",
        "            graph.ended.append(task_id)  # it has failed already",
        "            pass  # it has failed already",
    ),
    "submit children twice": (
        "core/scheduler/task_messages.py",
        "        family.spawned.setdefault(key, (int(check), []))[1].append(child)\n",
        "",
    ),
    "forget what was handed out": (
        "core/scheduler/restore.py",
        "        _restore_handout(farm, handout, agents, now)\n",
        "        pass\n",
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its tests, to be spoiled.  They are copied with what Python has compiled of them."""
    for name in ("ipytaskfarm", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def checked(folder: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, env=environment)


@by_hand
def test_a_copy_that_is_whole_passes(copy: Path) -> None:
    for words in (("tests.support.simulation", "0", "5"), (*PYTEST, *CAUGHT_ELSEWHERE.values())):
        found = checked(copy, words)
        assert found.returncode == 0, found.stdout + found.stderr


def test_each_mutation_can_be_made() -> None:
    for file, old, _ in MUTATIONS.values():
        text = (ROOT / "ipytaskfarm" / file).read_text()
        assert text.count(old) == 1, f"the code of {file} has changed: this mutation has to be written again: {old}"


@pytest.mark.parametrize("mutation", MUTATIONS if THOROUGH else ["send before the commit", "double-deliver"])
def test_a_mutation_of_the_heart_is_caught(mutation: str, copy: Path) -> None:
    file, old, new = MUTATIONS[mutation]
    path = copy / "ipytaskfarm" / file
    path.write_text(path.read_text().replace(old, new))
    if mutation in CAUGHT_ELSEWHERE:
        found = checked(copy, (*PYTEST, CAUGHT_ELSEWHERE[mutation]))
    else:
        first = str(SHOWS_FIRST.get(mutation, 0))
        found = checked(copy, ("tests.support.simulation", first, "5"))
        if not found.returncode:  # the code has changed, and others are the seeds that show it
            found = checked(copy, ("tests.support.simulation", "0", str(TRIED)))
    assert found.returncode == 1, "it was not noticed"
    assert "seed" in found.stdout or "Error" in found.stdout + found.stderr
