"""Profiles without a farm: what engines measure, how it is summed up, sorted, chosen, written and drawn."""

from __future__ import annotations

import pstats
import random
import re
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from ipytaskfarm.client.profiles import CpuStats, MemorySnapshot, PerEngine, SampleStats, is_within, snapshot_of
from ipytaskfarm.client.profiling import CpuProfiling, MemoryProfiling, Sampling
from ipytaskfarm.core.messages.engine_commands import CpuProfile, MemoryProfile, Place, ProfileBody, SampleProfile
from ipytaskfarm.display.flamegraph import HEAD, WIDTH, bars, flamegraph
from ipytaskfarm.engine import profiling
from ipytaskfarm.engine.profiling import CpuProfiler, MemoryProfiler, Profiling, Sampler, known_file, module_of
from tests.support.polling import eventually

WORK = Place("work", "study.model", "/a/study/model.py", 3)
WORK_ELSEWHERE = Place("work", "study.model", "/b/study/model.py", 3)
SOLVE = Place("solve", "numpy.linalg", "/lib/numpy/linalg.py", 70)
TASK = Place("<module>", "<task>", "<task>", 1)


def cpu_profiles() -> list[CpuProfile]:
    return [
        CpuProfile(0, "cpu", 2, [WORK, SOLVE], [(0, 2, 1.0, 4.0), (1, 10, 3.0, 3.0)]),
        CpuProfile(1, "cpu", 1, [SOLVE, WORK_ELSEWHERE], [(1, 1, 0.5, 2.5), (0, 5, 2.0, 2.0)]),
    ]


def sample_profiles() -> list[SampleProfile]:
    return [
        SampleProfile(0, 0.02, [TASK, WORK, SOLVE], [([0, 1, 2], 6), ([0, 1], 2)]),
        SampleProfile(1, 0.02, [WORK_ELSEWHERE, TASK], [([1, 0], 1), ([1, 0, 0, 0], 1)]),
    ]


def memory_profiles(size: int = 1000) -> list[MemoryProfile]:
    lines = [Place("", "study.model", "/a/study/model.py", n) for n in (7, 8)]
    caller = Place("", "<task>", "<task>", 1)
    return [
        MemoryProfile(0, 5000, 9000, [*lines, caller], [([2, 0], size, 10), ([2, 1], 300, 1)]),
        MemoryProfile(1, 50, 90, [caller, *lines], [([0, 1], 24, 2)]),
    ]


# -- CPU


def test_calls_are_summed_up_over_engines() -> None:
    stats = CpuStats(cpu_profiles())
    rows = {row["name"]: row for row in stats.rows}
    assert (rows["work"]["ncall"], rows["work"]["tsub"], rows["work"]["ttot"]) == (3, 1.5, 6.5)
    assert rows["work"]["tavg"] == pytest.approx(6.5 / 3)
    assert rows["solve"]["ncall"] == 15
    assert (stats.engines, stats.runs, stats.clock) == ([0, 1], 3, "cpu")


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, ["work", "solve"]),
        ({"sort_by": "tsub"}, ["solve", "work"]),
        ({"sort_by": "subtime", "sort_dir": "asc"}, ["work", "solve"]),
        ({"sort_by": "name"}, ["solve", "work"]),
        ({"sort_by": "where", "sort_dir": "desc"}, ["work", "solve"]),
        ({"sort_by": "ncalls", "max_rows": 1}, ["solve"]),
        ({"include": "numpy"}, ["solve"]),
        ({"include": ["study", "numpy.linalg"]}, ["work", "solve"]),
        ({"exclude": ("numpy",)}, ["work"]),
        ({"include": "study", "exclude": "study.model"}, []),
        ({"include": "num"}, []),
    ],
)
def test_a_table_is_sorted_and_chosen(settings: dict[str, Any], order: list[str]) -> None:
    assert [row["name"] for row in CpuStats(cpu_profiles()).top(**settings)] == order


def test_a_table_has_the_columns_that_are_named() -> None:
    stats = CpuStats(cpu_profiles())
    assert repr(stats.top(columns=["ncall", ("name", 3)])).splitlines() == ["ncall  name", "    3  wo…", "   15  so…"]
    assert "study.model:3" in repr(stats)
    assert "/a/study/model.py:3" in repr(stats.top(strip_dirs=False))
    assert "1 of 2 rows" in repr(stats.top(max_rows=1))
    assert "work" in stats._repr_html_()


@pytest.mark.parametrize(
    "settings", [{"sort_by": "speed"}, {"columns": ["speed"]}, {"columns": [3]}, {"sort_dir": "up"}]
)
def test_a_column_that_is_not_there_is_refused_and_those_that_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be one of name, where, ncall|'asc' or 'desc'"):
        CpuStats(cpu_profiles()).top(**settings)


def test_the_standard_librarys_pstats_reads_what_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "farm.prof"
    CpuStats(cpu_profiles()).save(path)
    read = pstats.Stats(str(path))
    assert read.get_stats_profile().func_profiles["work"].cumtime == 6.5


def test_a_profile_is_a_dataframe_too() -> None:
    frame = CpuStats(cpu_profiles()).to_dataframe()
    assert list(frame.sort_values("tsub")["name"]) == ["work", "solve"]
    assert list(SampleStats(sample_profiles()).to_dataframe()["self"]) == [6, 4, 0]
    assert MemorySnapshot(memory_profiles()).to_dataframe()["size"].sum() == 1324


def test_hostile_names_stay_text() -> None:
    bad = Place("<script>\x1b[2J\n", "<task>", "<task>", 1)
    stats = CpuStats([CpuProfile(0, "cpu", 1, [bad], [(0, 1, 0.1, 0.1)])])
    assert "\x1b" not in repr(stats)
    assert len(repr(stats.top()).splitlines()) == 2
    assert "<script>" not in stats._repr_html_()


# -- samples


def test_samples_are_counted_for_the_function_and_for_its_callers() -> None:
    stats = SampleStats(sample_profiles())
    rows = {row["name"]: row for row in stats.rows}
    assert stats.samples == 10
    assert {name: (row["self"], row["cumulative"]) for name, row in rows.items()} == {
        "<module>": (0, 10), "work": (4, 10), "solve": (6, 6),
    }  # fmt: skip
    assert rows["solve"]["tsub"] == pytest.approx(0.12)
    assert [row["name"] for row in stats.top(sort_by="self")] == ["solve", "work", "<module>"]
    assert "0.20 s" in repr(stats)


def test_collapsed_stacks_have_one_line_each_whatever_the_names_hold(tmp_path: Path) -> None:
    bad = Place("f;g\n7", "m", "m.py", 2)
    SampleStats([SampleProfile(0, 0.02, [TASK, bad], [([0, 1], 3), ([0], 1)])]).save(tmp_path / "stacks.txt")
    assert (tmp_path / "stacks.txt").read_text() == "<module> (<task>:1) 1\n<module> (<task>:1);f g 7 (m:2) 3\n"


def test_stacks_of_engines_stand_beside_one_another(tmp_path: Path) -> None:
    stats = SampleStats(sample_profiles())
    assert {stack[0] for stack in stats.labels(per_engine=True)} == {"engine 0", "engine 1"}
    assert sum(stats.labels(per_engine=True).values()) == stats.samples
    stats.flamegraph(tmp_path / "farm.svg", per_engine=True)
    assert "engine 1: 2 samples, 0.04 s, 20.0%" in (tmp_path / "farm.svg").read_text()


# -- the flame graph


def test_bars_are_as_wide_as_their_share_and_stand_on_their_callers() -> None:
    found = {(bar.label, bar.depth): bar for bar in bars({("a", "b"): 3, ("a", "c"): 1, ("d",): 4})}
    assert {key: (bar.begin, bar.width) for key, bar in found.items()} == {
        ("all", 0): (0.0, 1.0),
        ("a", 1): (0.0, 0.5), ("b", 2): (0.0, 0.375), ("c", 2): (0.375, 0.125),
        ("d", 1): (0.5, 0.5),
    }  # fmt: skip


@given(st.dictionaries(st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(tuple), st.integers(1, 9)))
def test_no_bar_is_wider_than_what_it_stands_on(stacks: dict[tuple[str, ...], int]) -> None:
    by_depth: dict[int, list[tuple[float, float]]] = {}
    for bar in bars(stacks):
        by_depth.setdefault(bar.depth, []).append((bar.begin, bar.begin + bar.width))
        below = by_depth.get(bar.depth - 1, [(0.0, 1.0)])
        assert any(low - 1e-9 <= bar.begin and bar.begin + bar.width <= high + 1e-9 for low, high in below)
    for spans in by_depth.values():
        ordered = sorted(spans)
        assert all(first[1] <= second[0] + 1e-9 for first, second in pairwise(ordered))


@given(
    st.dictionaries(st.lists(st.text(max_size=20), min_size=1, max_size=4).map(tuple), st.integers(1, 99)), st.text()
)
def test_a_picture_is_xml_whatever_the_names_hold(stacks: dict[tuple[str, ...], int], title: str) -> None:
    picture = flamegraph(stacks, title, 0.02)
    picture.encode("utf-8")
    root = ET.fromstring(picture)
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {"svg", "g", "rect", "text", "title"}
    height = float(root.get("height", "0"))
    for bar in root.findall(".//{*}g/{*}rect"):
        x, y, width = (float(bar.get(name, "nan")) for name in ("x", "y", "width"))
        assert 0 <= x <= x + width <= WIDTH + 0.1
        assert HEAD <= y <= height


def test_names_in_a_picture_are_escaped() -> None:
    picture = flamegraph({("</title><script>alert(1)</script>", '"&\x00\ud800'): 1}, "<b>")
    assert "<script" not in picture
    assert "<b>" not in picture
    assert "&lt;/title&gt;&lt;script&gt;alert(1)" in picture


def test_a_picture_of_nothing_says_so() -> None:
    assert "nothing was seen" in flamegraph({}, "")


def test_deep_stacks_and_slivers() -> None:
    picture = flamegraph({("f",) * 3000: 100_000, ("rare",): 1}, "")
    assert picture.count("<g>") == 3001
    assert "rare" not in picture


# -- memory


def test_memory_is_summed_up_by_line_file_and_traceback() -> None:
    snapshot = MemorySnapshot(memory_profiles())
    assert [(r["line"], r["size"], r["count"]) for r in snapshot.top()] == [(7, 1024, 12), (8, 300, 1)]
    assert [(r["module"], r["size"]) for r in snapshot.top("filename")] == [("study.model", 1324)]
    assert [r["callers"] for r in snapshot.top("traceback")] == ["<task>:1", "<task>:1"]
    assert snapshot.traced_bytes == 5050
    assert snapshot.of(1).top().rows[0]["size"] == 24
    with pytest.raises(ValueError, match="lineno, filename, traceback"):
        snapshot.top("function")  # type: ignore[arg-type]


def test_a_snapshot_is_compared_with_an_earlier_one(tmp_path: Path) -> None:
    before = MemorySnapshot(memory_profiles())
    gone = [MemoryProfile(0, 0, 0, [Place("", "new", "/new.py", 1)], [([0], 2048, 2)]), *memory_profiles(5000)[:1]]
    listing = MemorySnapshot(gone).top(compare_to=before)
    assert [(r["module"], r["size_diff"], r["count_diff"]) for r in listing] == [
        ("study.model", 3976, -2), ("new", 2048, 2), ("study.model", 0, 0),
    ]  # fmt: skip
    assert "+2.0" in repr(listing)
    before.save(tmp_path / "before.json")
    again = MemorySnapshot(gone).top(compare_to=tmp_path / "before.json")
    assert again.rows == listing.rows
    assert MemorySnapshot([]).top(compare_to=before).rows[-1]["size_diff"] == -1024


def test_what_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{")
    with pytest.raises(ValueError, match="not a snapshot that was saved"):
        snapshot_of(str(tmp_path / "x"))
    with pytest.raises(TypeError, match="not int"):
        snapshot_of(3)
    parts = PerEngine({p.engine: MemorySnapshot([p]) for p in memory_profiles()})
    assert snapshot_of(parts).traced_bytes == 5050
    assert repr(parts).startswith("engine 0\n")


# -- what the page says


def test_what_the_page_names_is_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "profiling.md").read_text()
    named = set(re.findall(r"\btc\.(cpu_profiling|memory_profiling|sampling)\.(\w+)", page))
    classes = {"cpu_profiling": CpuProfiling, "memory_profiling": MemoryProfiling, "sampling": Sampling}
    assert len(named) > 5
    assert [name for name in named if not hasattr(classes[name[0]], name[1])] == []


# -- names of places


def test_modules_and_files() -> None:
    path = ["", "/home/u", "/home/u/lib", "/lib/python3"]
    assert module_of("/home/u/lib/numpy/linalg/__init__.py", path) == "numpy.linalg"
    assert module_of("/home/u/study/model.py", path) == "study.model"
    assert module_of("/elsewhere/model.py", path) == "model"
    assert module_of("<frozen importlib._bootstrap>", path) == "importlib._bootstrap"
    assert module_of("<task>", path) == "<task>"
    assert known_file("<task 1f2e>") == "<task>"
    assert known_file("<cell 17-0a1b2c3d>") == known_file("/tmp/ipykernel_7/123.py") == "<cell>"
    assert is_within("numpy.linalg", ("numpy",))
    assert not is_within("numpy2", ("numpy",))


# -- the engine's side, in this process


class Busy:
    """A thread that runs code until it is told to stop; the sampler knows its frame."""

    def __init__(self, code: str) -> None:
        self.ended = False
        self.names: dict[str, Any] = {"busy": self}
        exec(compile(code, "<task 0a0b>", "exec"), self.names)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        self.names["work"]()

    def end(self) -> None:
        self.ended = True
        self.thread.join()


@pytest.fixture
def started() -> Iterator[list[Any]]:
    """Collect the threads that end after the test."""
    things: list[Any] = []
    yield things
    for thing in things:
        (thing.end if isinstance(thing, Busy) else thing.stop)()


def sample(started: list[Any], code: str, *marks: CodeType) -> Sampler:
    busy = Busy(code)
    started.append(busy)
    sampler = Sampler(busy.thread.ident or 0)
    sampler.mark(*marks)
    sampler.busy()
    sampler.start()
    started.append(sampler)
    return sampler


SPIN = "def spin():\n    sum(range(100))\ndef work():\n    while not busy.ended: spin()"


def test_the_sampler_sees_what_runs_inside_a_marked_frame(started: list[Any]) -> None:
    sampler = sample(started, SPIN, Busy.run.__code__)

    def seen() -> SampleStats:
        found = sampler.read(3)
        assert found is not None
        return SampleStats([found])

    eventually(lambda: seen().samples >= 5)
    sampler.stop()
    rows = {row["name"]: row for row in seen().rows}
    assert rows["work"]["cumulative"] == seen().samples  # nothing of Busy.run, nor of threading
    assert rows["work"]["module"] == "<task>"
    assert rows.keys() <= {"work", "spin"}
    sampler.start()
    assert seen().samples <= 1, "a new start starts again"


def test_the_sampler_does_not_count_what_nobody_marked_and_falls_asleep(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "IDLE_LOOKS", 2)
    sampler = sample(started, SPIN)
    sampler.idle()
    eventually(lambda: sampler._parked)
    sampler.busy()
    eventually(lambda: not sampler._parked)
    sampler.idle()
    eventually(lambda: sampler._parked)
    sampler.stop()  # ends, asleep or not
    found = sampler.read(0)
    assert found is not None
    assert found.stacks == []


def test_the_samplers_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STACKS_MAX", "SPOTS_MAX", "CODES_MAX"):
        monkeypatch.setattr(profiling, name, 10)
    sampler = Sampler(0)
    sampler._spots = {("(others)", "(others)", 0): 0}
    chance = random.Random(1)
    codes = [compile("\n" * n + "def f(): pass", f"<f{n}>", "exec").co_consts[0] for n in range(50)]
    for _ in range(300):
        sampler._count(chance.sample(codes, 3), 1)
    found = sampler.read(0)
    assert found is not None
    assert len(found.stacks) <= 11
    assert len(found.places) <= 10
    assert sum(samples for _, samples in found.stacks) == 300


def test_yappi_measures_what_lies_between_begin_and_end() -> None:
    pytest.importorskip("yappi")
    names: dict[str, Any] = {}
    exec(compile("def twice(f): f(); f()\ndef leaf(): pass", "<task 1234>", "exec"), names)
    profiler = CpuProfiler()
    assert profiler.read(0) is None
    profiler.start("wall", False)
    for _ in range(3):
        profiler.begin()
        names["twice"](names["leaf"])
        profiler.end()
        names["leaf"]()
    profiler.begin()
    names["twice"](profiler.stop)  # in the middle of a run
    names["leaf"]()
    found = profiler.read(0)
    assert found is not None
    counts = {row["name"]: row["ncall"] for row in CpuStats([found]).top(include="<task>")}
    assert counts == {"twice": 3, "leaf": 6}
    assert (found.runs, found.clock) == (4, "wall")


def test_without_yappi_an_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yappi", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install ipytaskfarm\[profile\]"):
        Profiling().do(ProfileBody("cpu", "start"), 0)


def test_a_profiler_that_breaks_does_not_break_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    yappi = pytest.importorskip("yappi")
    profiler = CpuProfiler()
    profiler.start("cpu", False)
    profiler.begin()
    with monkeypatch.context() as patch:
        patch.setattr(yappi, "get_thread_stats", lambda: 1 / 0)
        profiler.end()
    yappi.clear_stats()
    assert not profiler.on
    with pytest.raises(Exception, match="engine 7, which profiles no more: ZeroDivisionError"):
        profiler.read(7)


def test_memory_that_is_held_is_known_by_its_line() -> None:
    profiler = MemoryProfiler()
    assert profiler.read(0) is None
    names: dict[str, Any] = {}
    profiler.start(2)
    try:
        exec(compile("\n\nheld = [bytes(5000) for _ in range(100)]", "<task 77>", "exec"), names)
        profiler.start(2)  # goes on
    finally:
        profiler.stop(0)
    found = profiler.read(0)
    assert found is not None
    (row,) = MemorySnapshot([found]).top(include="<task>")
    assert (row["line"], row["size"] > 500_000) == (3, True)
    assert found == msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=MemoryProfile)
