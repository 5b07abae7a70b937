"""What the running task holds of its node: resources that it yields and takes, and what that means for libraries."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..core.arguments import check_name, check_number, check_timeout
from ..core.messages import FromEngine, Granted, ResourceRequest
from ..core.messages.task_types import RunKey
from ..core.requirements import CORES, GPU, SIZE_MAX, THREADS, Allotment, bytes_of
from ..core.text import exactly

DEVICES = "CUDA_VISIBLE_DEVICES"
ASK_AGAIN_S = 5.0


class RunResources:
    """What one run was allotted, and asks for."""

    def __init__(
        self, engine: str, run: RunKey, allotment: Allotment | None, send: Callable[[FromEngine], None]
    ) -> None:
        self._engine = engine
        self._run = run
        self._send = send
        self._first = self._allotment = allotment or Allotment()
        self._asked = 0
        self._changed = threading.Condition()
        self._granted: Granted | None = None
        self._pools: Any = None

    @property
    def amounts(self) -> dict[str, Any]:
        """As `CurrentTask.allotment` shows it."""
        held: dict[str, Any] = dict(self._allotment.amounts)
        if self._allotment.gpus:
            held["gpus"] = self._allotment.gpus
        if self._allotment.exclusive:
            held["exclusive"] = True
        return held

    def yield_resources(self, **amounts: float | str) -> dict[str, Any]:
        """Give back so much of what it holds, ``yield_resources(cores=1)``, or all of it; others may start with it.

        Returns the allotment left.  Raises ValueError for what it does not hold."""
        held = dict(self._allotment.amounts)
        for name, value in _checked(amounts).items() if amounts else held.copy().items():
            if held.get(name, 0.0) < value:
                text = f"{value:g} {name} were to be given back, and {held.get(name, 0):g} are held"
                raise ValueError(f"yield_resources: {text}")
            held[name] -= value
        return self._hold(held, None)

    def reserve_resources(self, timeout: float | None = None, **amounts: float | str) -> dict[str, Any]:
        """Take so much more, ``reserve_resources(cores=2)``, or what it was allotted at first; waits until it is free.

        Its own time limit goes on meanwhile.  Returns the allotment.  Raises TimeoutError after `timeout` seconds, and
        ValueError for what its node does not have at all."""
        wanted = dict(self._allotment.amounts)
        if amounts:
            for name, value in _checked(amounts).items():
                wanted[name] = wanted.get(name, 0.0) + value
        else:
            wanted.update({n: max(v, wanted.get(n, 0.0)) for n, v in self._first.amounts.items()})
        return self._hold(wanted, timeout)

    def _hold(self, amounts: dict[str, float], timeout: float | None) -> dict[str, Any]:
        before = dict(self._allotment.amounts)
        timeout = check_timeout("timeout", timeout)
        granted = self._ask(amounts, timeout)
        if granted is None:
            self._ask(before, None)  # it may be granted yet: take it back
            raise TimeoutError(f"task {self._run[0]} has waited {timeout:g} s for {amounts}")
        if granted.error:
            raise ValueError(granted.error)
        self.apply()
        return self.amounts

    def _ask(self, amounts: dict[str, float], timeout: float | None) -> Granted | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._asked += 1
            n = self._asked
            while True:
                self._send(ResourceRequest(self._engine, self._run, n, amounts))
                again = time.monotonic() + ASK_AGAIN_S  # a controller that has been restarted knows nothing of it
                until = again if deadline is None else min(again, deadline)
                while (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                    if self._granted is not None and self._granted.n == n:
                        return self._granted
                if deadline is not None and time.monotonic() >= deadline:
                    return None

    def granted(self, answer: Granted) -> None:
        """The answer to `_ask`; from the lane's thread."""
        with self._changed:
            if answer.run == self._run:
                self._granted = answer
                self._allotment = answer.allotment
                self._changed.notify_all()

    # -- what the allotment means for the libraries that the task uses

    def apply(self) -> None:
        """Tell libraries how many threads and which devices they may use; the runner puts it all back."""
        cores = self._allotment.amounts.get(CORES)
        if cores:
            count = max(1, int(cores))
            os.environ.update(dict.fromkeys(THREADS, str(count)))
            self._limit_pools(count)
        if GPU in self._first.amounts:
            os.environ[DEVICES] = ",".join(self._allotment.gpus)

    def _limit_pools(self, count: int) -> None:
        if "numpy" not in sys.modules and "scipy" not in sys.modules:
            return  # no pool is there yet: it will read the variables
        import threadpoolctl

        self.end()
        self._pools = threadpoolctl.threadpool_limits(count)

    def end(self) -> None:
        """Give libraries back the threads that they had."""
        if self._pools is not None:
            self._pools.restore_original_limits()
            self._pools = None


def _checked(amounts: dict[str, float | str]) -> dict[str, float]:
    return {check_name("a resource", name): _amount(name, value) for name, value in amounts.items()}


def _amount(name: str, value: float | str) -> float:
    number = bytes_of(exactly(value)) if isinstance(value, str) else check_number(name, value)
    if not 0 <= number <= SIZE_MAX:
        raise ValueError(f"{name} must be between 0 and 2**60, not {number:g}")
    return number
