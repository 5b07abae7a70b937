"""The parallel examples of IPython 0.10, each as a whole job on a real farm.

They are written first as tests, then as scripts (``tests/data/old_examples``) that differ from the originals only in
the import line and where Python 3 demands it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from ipytaskfarm import Farm, MultiEngineClient, TaskClient, client
from tests.support.farms import DEADLINE_S, outcomes
from tests.support.polling import eventually

ENGINES = 4
"""As many engines as the examples ask for: ``ipcluster -n 4``."""

# Scripts that name no farm mean this one.
pytestmark = pytest.mark.farm(n=ENGINES, name="default")


@pytest.fixture
def tc(farm: Farm) -> Iterator[TaskClient]:
    with farm.task_client() as tc:
        yield tc
        tc.abort(tc.tasks(state="unfinished"))


# ---------------------------------------------------------------------------------------- hello, world


def test_two_sleeping_tasks_say_hello_world(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.execute("import time")
    hello = tc.run(client.StringTask('time.sleep(0.5) ; word = "Hello,"', pull=("word")))
    world = tc.run(client.StringTask('time.sleep(0.5) ; word = "World!"', pull=("word")))
    said = [tc.get_task_result(i, block=True) for i in (hello, world)]
    assert " ".join(result.ns.word for result in said) == "Hello, World!"
    # They slept side by side.
    assert said[0].engineid != said[1].engineid
    assert said[1].started_at < said[0].completed_at


# ---------------------------------------------------------------------------------------- option prices


def price_options(S: float, K: float, sigma: float, r: float, days: int, paths: int) -> tuple[float, ...]:  # noqa: N803
    """Return prices of European and Asian puts and calls on a stock, averaged over simulated paths of its price."""
    import numpy as np

    rng = np.random.default_rng([int(K), int(1000 * sigma)])
    h = 1.0 / days
    drift, shake = np.exp((r - 0.5 * sigma**2) * h), sigma * np.sqrt(h)
    price, total = np.full(paths, S), np.zeros(paths)
    for _ in range(days):
        price = price * drift * np.exp(shake * rng.standard_normal(paths))
        total += price
    now = np.exp(-r)
    ends = (price, total / days)
    puts = [float(now * np.maximum(K - end, 0.0).mean()) for end in ends]
    calls = [float(now * np.maximum(end - K, 0.0).mean()) for end in ends]
    return puts[0], puts[1], calls[0], calls[1]


def black_scholes(S: float, K: float, sigma: float, r: float) -> tuple[float, float]:  # noqa: N803
    """The exact prices of the European put and call over one year."""

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2.0))

    d1 = (math.log(S / K) + r + sigma**2 / 2.0) / sigma
    d2 = d1 - sigma
    call = S * normal(d1) - K * math.exp(-r) * normal(d2)
    return call - S + K * math.exp(-r), call


def test_a_sweep_prices_options(tc: TaskClient, mec: MultiEngineClient) -> None:
    strikes = (90.0, 95.0, 100.0, 105.0, 110.0)
    volatilities = (0.1, 0.15, 0.2, 0.25, 0.3)
    mec.push_function({"price_options": price_options})
    ids = [
        tc.run(
            client.StringTask(
                "vp, ap, vc, ac = price_options(S, K, sigma, r, days, paths)",
                push={"S": 100.0, "K": strike, "sigma": volatility, "r": 0.05, "days": 64, "paths": 4000},
                pull=("vp", "ap", "vc", "ac", "sigma", "K"),
            )
        )
        for strike, volatility in itertools.product(strikes, volatilities)
    ]
    tc.barrier(ids, timeout=DEADLINE_S)
    results = [tc.get_task_result(i) for i in ids]
    assert [(r.ns.K, r.ns.sigma) for r in results] == list(itertools.product(strikes, volatilities))
    for result in results:
        ns = result.ns
        put, call = black_scholes(100.0, ns.K, ns.sigma, 0.05)
        error = 4.0 * 100.0 * ns.sigma / math.sqrt(4000)
        assert ns.vp == pytest.approx(put, abs=error)
        assert ns.vc == pytest.approx(call, abs=error)
        # The mean over the year is lower than its end is, where the price drifts upwards.
        assert 0.0 <= ns.ac < ns.vc
        assert ns.ap >= 0.0
    assert len({result.engineid for result in results}) > 1


# ---------------------------------------------------------------------------------------- word count


def word_frequencies(text: str) -> dict[str, int]:
    """Return how often each word is in a text."""
    frequencies: dict[str, int] = {}
    for word in text.split():
        frequencies[word] = frequencies.get(word, 0) + 1
    return frequencies


def test_words_are_counted_in_parallel(mec: MultiEngineClient) -> None:
    words = [f"w{(7 * n * n + n) % 61}" for n in range(10_001)]
    mec.push_function({"word_frequencies": word_frequencies})
    mec.scatter("words", words)
    mec.execute("frequencies = word_frequencies(' '.join(words))")
    merged: Counter[str] = Counter()
    for part in mec.pull("frequencies"):
        assert 0 < sum(part.values()) < len(words)
        merged.update(part)
    assert merged == Counter(words) == word_frequencies(" ".join(words))


# ---------------------------------------------------------------------------------------- reject

REJECTING = {
    "a name": """
from ipytaskfarm import errors
if not globals().get("run"):
    raise errors.TaskRejectError("task dependency not met")
where = int(id)
""",
    "a property": """
from ipytaskfarm.engine import get_engine
from ipytaskfarm import errors
if not get_engine(id).properties.get("run"):
    raise errors.TaskRejectError("task dependency not met")
where = int(id)
""",
}


@pytest.mark.parametrize("waits_for", REJECTING)
def test_tasks_reject_engines_until_one_is_ready(tc: TaskClient, mec: MultiEngineClient, waits_for: str) -> None:
    ids = [tc.run(client.StringTask(REJECTING[waits_for], pull="where")) for _ in range(6)]

    def all_were_rejected() -> bool:
        return all("reject" in str(tc.explain(i)) for i in ids)

    eventually(all_were_rejected, DEADLINE_S, what="every task has been rejected")
    assert outcomes(tc, ids) <= {"scheduled", "running"}
    if waits_for == "a name":
        mec.push({"run": True}, targets=[0, 1])
    else:
        mec.set_properties({"run": True}, targets=[0, 1])
    tc.barrier(ids, timeout=DEADLINE_S)
    assert {tc.get_task_result(i)["where"] for i in ids} <= {0, 1}
    assert outcomes(tc, ids) == {"succeeded"}
    if waits_for == "a name":
        mec.execute("del run", targets=[0, 1])
    else:
        mec.del_properties("run", targets=[0, 1])


# ---------------------------------------------------------------------------------------- sixty sleeps


def test_sixty_sleeps_of_which_the_last_four_are_aborted(tc: TaskClient) -> None:
    tc.clear()
    nap = client.StringTask("import time; time.sleep(naptime)", push={"naptime": 0.1})
    ids = [tc.run(nap) for _ in range(60)]
    for i in ids[-4:]:
        tc.abort(i)
    seen: list[dict[str, int]] = []

    def all_have_ended() -> bool:
        seen.append(tc.queue_status())
        return seen[-1]["scheduled"] + seen[-1]["pending"] == 0

    eventually(all_have_ended, DEADLINE_S)
    assert all(sum(status.values()) == 60 for status in seen)
    assert max(status["pending"] for status in seen) == ENGINES
    assert seen[-1] == {"scheduled": 0, "pending": 0, "succeeded": 56, "failed": 4}
    assert tc.queue_status(verbose=True) == {"scheduled": [], "pending": [], "succeeded": ids[:-4], "failed": ids[-4:]}
    for i in ids[-4:]:
        with pytest.raises(client.TaskAborted):
            tc.get_task_result(i)
    assert all(tc.get_task_result(i).duration >= 0.1 for i in ids[:-4])


# ---------------------------------------------------------------------------------------- search


def crack(first: int, wanted: str) -> int | None:
    """Search a range of 20,000 numbers for the one with the wanted digest; in other ranges search for long."""
    numbers: Any = range(first, first + 20_000)
    for number in numbers if first == 60_000 else itertools.cycle(numbers):
        if hashlib.sha256(b"%d" % number).hexdigest() == wanted:
            return int(number)
    return None


def test_the_first_hit_of_a_search_aborts_the_rest(tc: TaskClient) -> None:
    secret = 71_234
    wanted = hashlib.sha256(b"%d" % secret).hexdigest()
    ids = [tc.run(client.Task(crack, args=(first, wanted))) for first in range(0, 400_000, 20_000)]
    found = None
    for i in tc.as_completed(ids, timeout=DEADLINE_S):
        found = tc.get_task_result(i).result
        if found is not None:
            break
    assert found == secret
    tc.abort(ids)
    tc.barrier(ids, timeout=DEADLINE_S)
    hit = ids[60_000 // 20_000]
    assert {tc.status(i).reason for i in ids if i != hit} == {"aborted"}
    # The engines are free again, though the other searches would never have ended.
    assert tc.map(abs, [-1, -2, -3, -4]) == [1, 2, 3, 4]


# ---------------------------------------------------------------------------------------- the scripts

SCRIPTS = Path(__file__).parents[1] / "data" / "old_examples"

RUN_IPY = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="NoColor")
sys.path.insert(0, "")
cell = []
def end():
    if any(line.strip() for line in cell):
        shell.run_cell("\\n".join(cell), store_history=True).raise_error()
    cell.clear()
for line in [*open(sys.argv[1]).read().splitlines(), ""]:
    indented = bool(cell) and cell[-1][:1] == " "
    goes_on = line[:1] in (" ", ")") or line.startswith(("except", "else")) or (not line and indented)
    if not goes_on:
        end()
    cell.append(line)
end()
"""
"""As if typed: a line, or a statement with what is indented under it, is a cell."""


@pytest.fixture(scope="module")
def environment(farm: Farm) -> dict[str, str]:
    """The environment in which scripts find the farm: each test has another one."""
    return {**os.environ, "JUPYTER_RUNTIME_DIR": str(farm.connection_file.parent)}


Script: TypeAlias = Callable[..., list[str]]


@pytest.fixture
def folder(tc: TaskClient, mec: MultiEngineClient, tmp_path: Path) -> Iterator[Path]:
    """The scripts with their data in a folder of their own, in which the engines are too."""
    folder = tmp_path / "examples"
    shutil.copytree(SCRIPTS, folder)
    tc.clear()
    mec.reset()
    (before,) = mec.execute("import os; print(os.getcwd())", targets=0)
    mec.execute(f"import os; os.chdir({str(folder)!r})")
    yield folder
    mec.execute(f"import os; os.chdir({before['stdout'].strip()!r})")
    mec.reset()


@pytest.fixture
def script(folder: Path, environment: dict[str, str]) -> Script:
    """Return a function that runs a script as its user did, and returns the lines that it prints."""

    def run(name: str, *arguments: str, typed: str = "") -> list[str]:
        start = [name] if name.endswith(".py") else ["-c", RUN_IPY, name]
        ended = subprocess.run(
            [sys.executable, *start, *arguments],
            cwd=folder, env=environment, input=typed, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout.splitlines()

    return run


def test_helloworld(script: Script) -> None:
    assert script("helloworld.py")[-1] == "Hello, World!"


def test_task1(script: Script) -> None:
    assert script("task1.py") == ["a, b:  5 300", "c:  45000 45000"]


def test_task2(script: Script) -> None:
    *_, aborted, failed, status = script("task2.py")
    assert aborted.removeprefix("Aborted:") == failed.removeprefix("Failed:")
    assert status == "Queue status at the end: {'scheduled': 0, 'pending': 0, 'succeeded': 56, 'failed': 4}"


def test_task_profiler(script: Script) -> None:
    client_line, first, _, performance, _ = script("task_profiler.py", "-n", "40", "-t", "0.01", "-T", "0.2")
    assert client_line.startswith("<TaskClient of farm 'default'")
    assert first.startswith("executing 40 tasks")
    assert first.endswith("on 4 engines")
    assert float(performance.partition("x")[0]) > 1.0


@pytest.mark.parametrize("name", ["taskmap.py", "multienginemap.py"])
def test_maps(script: Script, name: str) -> None:
    first, _, second, third = script(name)
    for line, start in zip(
        (first, second, third), ("Simple, default map: ", "Using a mapper: ", "Using a p"), strict=True
    ):
        assert line.startswith(start)
        assert line.endswith(str([2 * x for x in range(10)]))


def test_taskreject(script: Script) -> None:
    assert script("taskreject.py") == ["Ended before:  []", str([3.0e8] * 10), "On engines:  []"]


def test_multiengine1(script: Script) -> None:
    said = script("multiengine1.ipy")
    wanted = [
        "Caught invalid engine ID OK.",
        "Caught 1/0 correctly.",
        "Caught 1/0 in px correctly.",
        "Set by turns: [5, 10, 5, 10]",
        f"Pulled: {[[10, 30]] * 4} {[(10,) * 4, (30,) * 4]} {[10] * 4} {[10] * 4}",
        "One by one: [[0], [1], [2], [3]] [0, 1, 2, 3]",
        "As a dict: [100, 100, 100, 100]",
        f"Keys after reset: {[[]] * 4}",
        "Caught IndexError ok.",
        f"First command: {['a = 5'] * 4} {[['a']] * 4}",
        "Waiting: True",
        "Caught QueueCleared OK.",
        "Left: (0, {'queue': [], 'pending': None}) (1, {'queue': [], 'pending': None})",
        f"Gathered: {list(range(10))}",
        "Gathered: [0 1 2 3 4 5 6 7 8 9]",
        "Caught ZeroDivisionError OK.",
        "False 4 True",
        "Not blocking: [10, 10, 10, 10]",
        "PendingResult object was cleared OK.",
        "The tests are done!",
    ]
    assert [line for line in wanted if line not in said] == [], said
    assert [said.count(line) for line in (wanted[15], wanted[18])] == [2, 2]
    assert said.count("Caught QueueCleared OK.") >= 3


def test_mcdriver(script: Script) -> None:
    submitted, without_risk, *comparisons = script("mcdriver.py")
    assert submitted == "Submitted tasks:  25"
    ours, exact = without_risk.split()[-2:]
    assert ours == exact == f"{100 - 90 * math.exp(-0.05):.6f}"
    assert comparisons == ["Asian calls are cheaper:  True", "Lower strikes cost more:  True"]


def test_pwordfreq(script: Script, folder: Path) -> None:
    words = [f"w{(7 * n * n + n) % 61}" for n in range(4_000)]
    (folder / "davinci.txt").write_text(" ".join(words))
    for i in range(4):
        (folder / f"davinci{i}.txt").write_text(" ".join(words[1000 * i : 1000 * (i + 1)]))
    said = script("pwordfreq.py")
    assert said[-1] == "Equal:  True"
    assert said[1:11] == said[13:23]
    (word, count) = said[1].split()
    assert int(count) == words.count(word)


def test_nwmerge(script: Script) -> None:
    ids, _, here, _, there = script("nwmerge.py")
    assert ids == "Engine IDs: [0, 1, 2, 3]"
    assert here == there == str(sorted([*range(5, 20), *range(10), *range(15, 25)]))


def test_parallelpi(script: Script, folder: Path) -> None:
    chance = random.Random(1)
    for i in range(1, 5):
        lines = ["".join(chance.choices("0123456789", k=100)) for _ in range(100)]
        (folder / f"pi-{i:02d}of04.txt").write_text("\n".join(lines))
    said = script("parallelpi.py")
    assert said[-2:] == ["Pairs in one file:  9999 first:  True", "Pairs in all files:  39996"]


def test_phistogram(script: Script) -> None:
    histogram, same, normed = script("phistogram.py")
    assert sum(map(int, histogram.partition("[")[2].rstrip("]").split(","))) == 1001
    assert (same, normed) == ("As here:  True True", "Normed: 1.000")


def test_rmt(script: Script) -> None:
    said = script("rmt.ipy")
    assert said[0] == "Distributing code to engines..."
    assert said.count("Running with 10 per engine.") == 2
    assert said[-1] == "Found: (40,) True"


def test_fetchparse(script: Script, folder: Path) -> None:
    pages = {"start.html": ["a.html", "b.html"], "a.html": ["b.html", "gone.html"], "b.html": ["start.html"]}
    site = folder / "site"
    site.mkdir()
    for name, links in pages.items():
        (site / name).write_text("".join(f'<p><a href="{link}">to {link}</a></p>' for link in links))
    said = script("fetchparse.py", typed=(site / "start.html").as_uri() + "\n")
    assert said[-1] == "Visited: 4 of 4"
    assert sorted(said[:-1]) == ["a.html : 2", "b.html : 1", "gone.html : urllib.error.URLError", "start.html : 2"]
