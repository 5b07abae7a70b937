"""Many values and large ones: held without a descriptor each; maps that end early keep nothing; parts are joined."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient
from ipytaskfarm.client import engine_maps
from ipytaskfarm.core.errors import UnpickleableException
from ipytaskfarm.system import file_mapping
from tests.conftest import Dirs
from tests.support.farms import DEADLINE_S, python
from tests.support.polling import eventually

try:
    from scipy import sparse
except ImportError:
    sparse = None

# -- memory of files


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def loaded(path: Path) -> memoryview:
    with open(path, "rb") as file:
        return file_mapping.load(file.fileno())


SIZES = [0, 1, 66_000, file_mapping.MAPPED_BYTES - 1, file_mapping.MAPPED_BYTES, file_mapping.MAPPED_BYTES + 4097]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_as_memory(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / "file", os.urandom(size)
    path.write_bytes(data)
    before, mapped = descriptors(), len(file_mapping._mapped)
    found = loaded(path)
    assert descriptors() == before
    assert len(file_mapping._mapped) - mapped == (size >= file_mapping.MAPPED_BYTES)
    assert found == data
    assert not found.readonly
    if size:
        found[-1] ^= 255
        assert path.read_bytes() == data, "writing is private"
    array = np.frombuffer(found, "u1")
    del found
    assert array[: size // 2].tobytes() == data[: size // 2]
    del array
    assert len(file_mapping._mapped) == mapped


def test_the_number_of_mappings_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    monkeypatch.setattr(file_mapping, "MAPPINGS_MAX", len(file_mapping._mapped) + 2)
    path = tmp_path / "file"
    path.write_bytes(bytes(file_mapping.MAPPED_BYTES))
    before = len(file_mapping._mapped)
    held = [loaded(path) for _ in range(5)]
    assert len(file_mapping._mapped) == before + 2
    assert all(bytes(each) == bytes(file_mapping.MAPPED_BYTES) for each in held)
    del held[0]
    held.append(loaded(path))
    assert len(file_mapping._mapped) == before + 2, "room that was left is used again"


def test_a_file_that_cannot_be_mapped_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_mapping, "_map", lambda fd, size: None)
    path = tmp_path / "file"
    path.write_bytes(b"x" * file_mapping.MAPPED_BYTES)
    assert bytes(loaded(path)) == b"x" * file_mapping.MAPPED_BYTES


# -- a farm

MANY = """
import os, sys

def make(i):
    import numpy
    return numpy.full(8300, float(i % 50))

def total(parts):
    return len(parts), float(sum(part[-1] for part in parts))

def main(n):
    from ipytaskfarm import Farm, Ref, Task
    with Farm(n=1) as farm:
        tc = farm.task_client()
        ids = [tc.run(Task(make, args=(i,))) for i in range(n)]
        tc.barrier(ids)
        held = [tc.get_task_result(i).result for i in ids]
        held[0][:] = -1.0
        assert held[50][0] == 0.0, "memory is shared"
        assert held[n - 1][0] == (n - 1) % 50
        refs = [Ref(i) for i in ids]
        print(len(held), tc.run(Task(total, args=(refs,)), block=True).result, len(os.listdir("/proc/self/fd")) < 100)

if __name__ == "__main__":
    main(int(sys.argv[1]))
"""


@pytest.mark.farm
def test_thousands_of_values_with_few_descriptors(farm_dirs: Dirs) -> None:
    """It is the case of 70,000 values with 1024 descriptors, and one task has ten times as many values
    as descriptors.
    """
    ended = subprocess.run(
        ["bash", "-c", 'ulimit -n 128; exec "$@"', "bash", sys.executable, "-c", MANY, "1500"],
        capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"1500 (1500, {float(sum(i % 50 for i in range(1500)))}) True\n"


# -- maps that are left early


def twice(x: int) -> int:
    return 2 * x


def picky(x: int) -> int:
    if x == 3:
        raise LookupError(x)
    return x


def slow_after_two(x: int) -> int:
    import time

    time.sleep(0.0 if x < 2 else 0.2)
    return x


def endless() -> Iterator[int]:
    yield from itertools.count()


def broken() -> Iterator[int]:
    yield from range(5)
    raise ZeroDivisionError("the generator")


def _break(tc: TaskClient) -> None:
    for value in tc.imap(twice, itertools.count()):
        if value == 20:
            break


def _close(tc: TaskClient) -> None:
    values = tc.imap(slow_after_two, range(50))
    assert next(values) == 0
    values.close()  # type: ignore[attr-defined]


def _collected(tc: TaskClient) -> None:
    values = tc.imap_unordered(slow_after_two, range(50))
    next(values)
    del values
    gc.collect()


def _never_begun(tc: TaskClient) -> None:
    tc.imap(twice, range(50))


def _consumer_fails(tc: TaskClient) -> None:
    def consume() -> None:
        for value in tc.imap(twice, endless()):
            if value > 10:
                raise OverflowError

    with pytest.raises(OverflowError):
        consume()


def _item_fails(tc: TaskClient) -> None:
    with pytest.raises(LookupError):
        list(tc.imap(picky, endless()))


def _item_fails_unordered(tc: TaskClient) -> None:
    with pytest.raises(LookupError):
        list(tc.imap_unordered(picky, range(200)))


def _map_fails(tc: TaskClient) -> None:
    with pytest.raises(LookupError):
        tc.map(picky, range(200), name="picky")
    tc.clear(tc.job("picky").ids)  # the results of a map are kept like those of any job


def _generator_fails(tc: TaskClient) -> None:
    values = tc.imap(twice, broken())
    assert [next(values) for _ in range(5)] == [0, 2, 4, 6, 8], "what came before it is computed"
    with pytest.raises(ZeroDivisionError, match="the generator"):
        next(values)


def _generator_of_a_map_fails(tc: TaskClient) -> None:
    with pytest.raises(ZeroDivisionError):
        tc.map(twice, broken())


def _item_cannot_travel(tc: TaskClient) -> None:
    import threading

    with pytest.raises(UnpickleableException):
        list(tc.imap(twice, [1, 2, threading.Lock()]))


def _item_of_tasks_cannot_travel(tc: TaskClient) -> None:
    import threading

    with pytest.raises(UnpickleableException):
        tc.mapper(clear_after=True).map(twice, [1, 2, threading.Lock()])


def _tasks_of_a_map(tc: TaskClient) -> None:
    values = tc.map(twice, range(5), clear_after=True)
    assert values == [0, 2, 4, 6, 8]
    tc.clear(values.job.ids)


def _large_values(tc: TaskClient) -> None:
    for _ in tc.imap(lambda i: bytes(100_000) + bytes([i]), range(30)):
        break


LEFT_EARLY: list[Callable[[TaskClient], None]] = [
    _break, _close, _collected, _never_begun, _consumer_fails, _item_fails, _item_fails_unordered, _map_fails,
    _generator_fails, _generator_of_a_map_fails, _item_cannot_travel, _item_of_tasks_cannot_travel, _tasks_of_a_map,
    _large_values,
]  # fmt: skip


@pytest.mark.parametrize("leave", LEFT_EARLY, ids=lambda leave: leave.__name__.strip("_"))
def test_nothing_is_kept_under_ids_that_nobody_knows(tc: TaskClient, leave: Callable[[TaskClient], None]) -> None:
    mine = tc.run(Task("a = 1"))
    tc.barrier(mine)
    leave(tc)
    eventually(lambda: [row.id for row in tc.tasks().rows] == [mine], DEADLINE_S, what="only the user's own is left")
    eventually(lambda: set(tc._session.arrivals.finals) <= {mine}, DEADLINE_S, what="the session forgets them too")
    tc.clear(mine)


LEFT_AT_EXIT = """
import sys
from ipytaskfarm import TaskClient

def slow(x):
    import time
    time.sleep(0.05)
    return x

tc = TaskClient(sys.argv[1])
values = tc.imap(slow, range(10_000))
print(next(values))
"""


def test_a_map_that_is_open_at_the_end_of_the_program_leaves_nothing(farm: Farm, tc: TaskClient) -> None:
    python(LEFT_AT_EXIT, str(farm.connection_file))
    eventually(lambda: not tc.tasks().rows, DEADLINE_S, what="nothing is left")


# -- what maps take


def add(*values: Any) -> Any:
    return sum(values)


MAPS: dict[str, tuple[Callable[[], list[Any]], Any]] = {
    "an endless second": (lambda: [range(3), itertools.repeat(1)], [1, 2, 3]),
    "an endless first": (lambda: [itertools.count(), range(3)], [0, 2, 4]),
    "an endless generator": (lambda: [[5, 6], endless()], [5, 7]),
    "repeat with a number of times": (lambda: [itertools.repeat(2, 3)], [2, 2, 2]),
    "generators of different lengths": (lambda: [(x for x in range(5)), (x for x in range(2))], [0, 2]),
    "nothing": (list[list[Any]], ValueError),
    "empty": (lambda: [[]], []),
    "empty beside an endless one": (lambda: [[], itertools.count()], []),
    "unequal lists": (lambda: [[1, 2], [1]], ValueError),
    "unequal lists beside an endless one": (lambda: [[1, 2], [1], itertools.count()], ValueError),
    "unequal iterators of lists": (lambda: [iter([1, 2]), iter([1])], ValueError),
    "a dict": (lambda: [{1: "a", 2: "b"}], [1, 2]),
    "arrays": (lambda: [np.arange(3), np.arange(3)], [0, 2, 4]),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("kind", ["map", "tasks", "imap", "imap_unordered"])
def test_what_maps_take(tc: TaskClient, name: str, kind: str) -> None:
    make, wanted = MAPS[name]
    call: dict[str, Callable[..., list[Any]]] = {
        "map": tc.map,
        "tasks": tc.mapper(clear_after=True).map,
        "imap": lambda f, *s: list(tc.imap(f, *s)),
        "imap_unordered": lambda f, *s: sorted(tc.imap_unordered(f, *s)),
    }
    if isinstance(wanted, list):
        assert call[kind](add, *make()) == wanted
    else:
        with pytest.raises(wanted):
            call[kind](add, *make())


@pytest.mark.parametrize("name", MAPS)
def test_what_maps_over_engines_take(mec: MultiEngineClient, name: str) -> None:
    make, wanted = MAPS[name]
    if isinstance(wanted, list):
        assert mec.map(add, *make()) == wanted
    else:
        with pytest.raises(wanted):
            mec.map(add, *make())


def test_imap_of_endless_iterables_reads_a_little_ahead(tc: TaskClient) -> None:
    read = itertools.count()
    taken = (next(read) for _ in itertools.repeat(None))
    values = tc.imap(add, taken, itertools.repeat(1))
    assert list(itertools.islice(values, 10)) == list(range(1, 11))
    assert next(read) < 100_000
    with pytest.raises(ValueError, match=r"never end: tc\.imap takes them"):
        tc.map(add, itertools.count(), itertools.repeat(1))


# -- parts

frame = pd.DataFrame({"x": range(8), "y": list("abcdefgh")}, index=[0.5 * i for i in range(8)])
PARTS: dict[str, Any] = {
    "a list": list(range(8)),
    "a tuple": tuple(range(8)),
    "no items": [],
    "an array": np.arange(16.0).reshape(8, 2),
    "a short array": np.arange(2, dtype="i2"),
    "an empty array": np.empty((0, 3), "f4"),
    "an array of records": np.array([(1, 2.0)] * 5, dtype=[("a", "i4"), ("b", "f8")]),
    "a masked array": np.ma.masked_equal(np.arange(7), 3),
    "a matrix": np.arange(12).reshape(6, 2).view(np.matrix),
    "a Series": pd.Series(np.arange(7, dtype="i2"), index=list("abcdefg"), name="s"),
    "a Series with labels that are numbers": pd.Series([1.5, 2.5, 3.5, 4.5], index=[3.0, 1.0, 2.0, 0.0]),
    "a short Series": pd.Series([1], index=["only"]),
    "a Series of categories": pd.Series(list("abca"), dtype="category"),
    "a Series of integers that may be missing": pd.Series([1, None, 3, 4], dtype="Int64"),
    "a Series of moments": pd.Series(pd.date_range("2024-02-28", periods=5, tz="Europe/Berlin")),
    "a frame": frame,
    "a frame of two levels": frame.set_index(["x", "y"], drop=False),
    "an index": pd.Index(list("abcdef"), name="i"),
    "an index of a range": pd.RangeIndex(7),
    "an index of moments": pd.date_range("2024-01-01", periods=6),
    "an array of pandas": pd.array([1, None, 3, 5], dtype="Int64"),
}
if sparse is not None:
    PARTS["a csr matrix"] = sparse.random(9, 4, 0.4, format="csr", random_state=1)
    PARTS["a coo array"] = sparse.coo_array(np.eye(7))


@pytest.mark.parametrize("dist", engine_maps.DISTRIBUTIONS)
@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("name", PARTS)
def test_parts_are_joined_to_what_they_were(name: str, count: int, dist: str) -> None:
    whole = PARTS[name]
    found = engine_maps.parts(whole, count, dist)
    assert len(found) == count
    together = engine_maps.joined(found, dist)
    same_value(together, whole)


def same_value(found: Any, wanted: Any) -> None:
    if isinstance(wanted, pd.Series):
        pd.testing.assert_series_equal(found, wanted, check_freq=False)
    elif isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted)
    elif isinstance(wanted, pd.Index):
        assert found.equals(wanted)
        assert (found.dtype, found.name) == (wanted.dtype, wanted.name)
    elif isinstance(wanted, pd.api.extensions.ExtensionArray):
        pd.testing.assert_extension_array_equal(found, wanted)
    elif sparse is not None and sparse.issparse(wanted):
        assert sparse.issparse(found)
        assert found.dtype == wanted.dtype
        assert (found.toarray() == wanted.toarray()).all()
    elif isinstance(wanted, np.ndarray):
        assert type(found) is type(wanted)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
        if isinstance(wanted, np.ma.MaskedArray):
            np.testing.assert_array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(wanted))
    else:
        assert found == wanted
        assert type(found) is type(wanted)


NOT_JOINED: dict[str, list[Any]] = {
    "strings": ["ab", "cd"],
    "dicts": [{"a": 1}, {"b": 2}],
    "sets": [{1}, {2}],
    "nothing": [None, None],
    "numbers": [1.5, np.float64(2)],
    "a Series and a list": [pd.Series([1]), [2]],
    "a Series and a frame": [pd.Series([1]), pd.DataFrame({"a": [1]})],
    "arrays that do not fit": [np.zeros((2, 2)), np.zeros(3)],
    "an array and a list": [np.zeros(2), [1]],
    "arrays without items": [np.array(1), np.array(2)],
}


@pytest.mark.parametrize("dist", engine_maps.DISTRIBUTIONS)
@pytest.mark.parametrize("name", NOT_JOINED)
def test_what_cannot_be_joined_is_a_list_of_parts(name: str, dist: str) -> None:
    found = engine_maps.joined(NOT_JOINED[name], dist)
    assert isinstance(found, list)
    assert all(given is kept for given, kept in zip(NOT_JOINED[name], found, strict=True))


@pytest.mark.parametrize("name", ["a Series with labels that are numbers", "a frame", "an array", "a csr matrix"])
def test_scatter_and_gather_on_engines(mec: MultiEngineClient, name: str) -> None:
    if name not in PARTS:
        pytest.skip("scipy is not installed")
    for dist in engine_maps.DISTRIBUTIONS:
        mec.scatter("part", PARTS[name], dist)
        same_value(mec.gather("part", dist), PARTS[name])
    mec.scatter("part", PARTS[name][: len(mec)], flatten=True)
    first = mec.pull("part", targets=0)[0]
    assert getattr(first, "shape", ()) in ((), (1, 4), (2,))
