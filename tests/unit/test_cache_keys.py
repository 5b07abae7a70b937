"""Which calls of one function have one key in the result cache."""

from __future__ import annotations

from typing import Any

import pytest

from ipytaskfarm.client.cache_keys import cache_key

Given = tuple[tuple[Any, ...], dict[str, Any]]


def give(x: Any, y: float = 1.0, *rest: Any, last: Any = None, **others: Any) -> Any:
    return x, y, rest, last, others


def placed(x: int, /, y: int = 2, **others: int) -> tuple[int, int, dict[str, int]]:
    return x, y, others


class Scale:
    def times(self, x: int, by: int = 1) -> int:
        return x * by


def called(*args: Any, **kwargs: Any) -> Given:
    return args, kwargs


def key(function: Any, given: Given) -> str:
    args, kwargs = given
    return cache_key(function, args, kwargs, "", None, "", lambda ref: 0)[0].key


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (give, [called(1), called(x=1), called(1, 1.0), called(1, y=1.0), called(y=1.0, x=1), called(1, last=None)]),
        (give, [called(1, 2), called(1, y=2), called(y=2, x=1)]),
        (give, [called(1, 2, 3), called(1, 2, 3, last=None)]),
        (give, [called(1, z=2, a=3), called(1, a=3, z=2), called(a=3, x=1, z=2)]),
        (placed, [called(1), called(1, 2), called(1, y=2)]),
        (placed, [called(1, x=5), called(1, 2, x=5), called(1, x=5, y=2)]),
        (Scale().times, [called(3), called(x=3), called(3, 1), called(3, by=1)]),
        (len, [called("a"), called("a")]),
    ],
    ids=[
        "by place or by name",
        "two by place",
        "more by place",
        "more by name",
        "one by place alone",
        "one name twice",
        "a method",
        "not of Python",
    ],
)
def test_calls_that_a_function_cannot_tell_apart_have_one_key(function: Any, same: list[Given]) -> None:
    assert len({key(function, given) for given in same}) == 1


def test_calls_that_differ_have_keys_of_their_own() -> None:
    calls = [
        called(1), called(True), called(1, 1), called(1, 1.0, None), called(1, first=1), called(1, last=0),
        called(1, -1.0), called(1, 0.0), called(1, -0.0), called(1, "1.0"), called(None), called(1, rest=()),
        called(1, 2), called(1, 1.0, 2),
    ]  # fmt: skip
    assert len({key(give, given) for given in calls}) == len(calls)
    assert key(placed, called(1, x=1)) != key(placed, called(1))
