"""Functions, classes and an environment whose tasks fail, for tests of debuggers."""

from __future__ import annotations

from collections.abc import Callable

from ipytaskfarm import TaskEnvironment


def divide(x: float, by: float = 0.0) -> float:
    difference = by - 0
    return x / difference


async def divide_later(x: float) -> float:
    return divide(x)


class Ratio:
    """Calling the class itself fails."""

    def __init__(self, x: float, by: float = 0.0) -> None:
        self.value = divide(x, by)


class Divider:
    """Calling an instance fails."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: float) -> float:
        return divide(x, self.by)


class Prepared(TaskEnvironment):
    def __init__(self, zero: int = 0) -> None:
        self.zero = zero

    def setup(self) -> None:
        self.ready = self.zero


def closure(by: float) -> Callable[[float], float]:
    def inner(x: float) -> float:
        return divide(x, by)

    return inner


CODE = "found = !echo 3\nb = a * 0\nc = int(found[0]) / b"
"""With IPython's syntax; it needs a pushed `a`."""
