"""Short texts of values: what they say, and that large values cost no more than small ones."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest

from ipytaskfarm.serialization import tracebacks
from ipytaskfarm.serialization.tracebacks import TEXT_CHARACTERS_MAX, ShortTexts


@dataclasses.dataclass
class Point:
    x: int
    many: list[int]
    hidden: int = dataclasses.field(default=1, repr=False)


@dataclasses.dataclass
class Own:
    x: int

    def __repr__(self) -> str:
        return "own text"


class Long:
    def __len__(self) -> int:
        return 5000

    def __repr__(self) -> str:
        raise AssertionError("a long container was turned into text")


def text(value: object) -> str:
    return ShortTexts().repr(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "3"),
        ("word", "'word'"),
        ({"b": 1, "a": [1, 2]}, "{'b': 1, 'a': [1, 2]}"),
        ({}, "{}"),
        ({n: n for n in range(9)}, "{0: 0, 1: 1, 2: 2, 3: 3, ...}"),
        ({3, 1, 2}, "{1, 2, 3}"),
        (frozenset({2, 1}), "frozenset({1, 2})"),
        (set(range(5000)), "{0, 1, 2, 3, 4, 5, ...}"),
        (Point(1, list(range(10_000))), "Point(x=1, many=[0, 1, 2, 3, 4, 5, ...])"),
        (Own(2), "own text"),
        (Point, repr(Point)),
        (Long(), "<Long of 5,000 items>"),
    ],
)
def test_values(value: object, expected: str) -> None:
    assert text(value) == expected


def test_arrays_and_tables() -> None:
    np = pytest.importorskip("numpy")
    assert text(np.arange(4)) == "array([0, 1, 2, 3])"
    assert text(np.float64(0.5)) == "np.float64(0.5)"
    assert text(np.zeros((2000, 30))) == "<ndarray 2,000 × 30 float64: 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, …>"
    assert text(np.array([Long()] * 20)) == "<ndarray 20 object>"
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({f"c{n}": range(100) for n in range(8)})
    assert text(frame) == "<DataFrame 100 × 8: c0, c1, c2, c3, c4, c5, …>"
    assert text(frame["c1"]) == "<Series 100 int64>"


def test_large_values_cost_no_more_than_small_ones() -> None:
    np = pytest.importorskip("numpy")

    def least_s(value: object) -> float:
        times = []
        for _ in range(20):
            began_s = time.perf_counter()
            assert len(text(value)) <= 2 * TEXT_CHARACTERS_MAX
            times.append(time.perf_counter() - began_s)
        return min(times)

    large: list[Any] = [
        list(range(10**6)), {n: n for n in range(10**6)}, set(range(10**6)), "x" * 10**7,
        Point(1, list(range(10**6))), np.zeros((1000, 1000)), np.array(["word"] * 10**5),
    ]  # fmt: skip
    small_s = least_s([1, 2, 3, 4, 5, 6])
    for value in large:
        assert least_s(value) < 20 * small_s, type(value).__name__


class Waiting:
    """An instance whose text comes when `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __repr__(self) -> str:
        self.go.wait(60)
        return "late"


def test_a_text_that_takes_long_does_not_hold_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracebacks, "TEXTS_S", 0.2)

    def fail(waiting: Waiting, before: list[int], plain: int) -> None:
        raise ValueError

    waiting = Waiting()
    places = tracebacks.Places()
    try:
        fail(waiting, [1], 3)
    except ValueError as error:
        places.frames(error.__traceback__)
    finally:
        waiting.go.set()
    values = dict(places.found[-1].values)
    assert values["waiting"] == "<a Waiting, its text takes too long>"
    assert values["plain"] == "3"
