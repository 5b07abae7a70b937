"""Programs whose objects hold the client, and submit their own methods by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

import ipytaskfarm.ipyparallel as ipp
from ipytaskfarm import Executor, Farm, MultiEngineClient, Pool, Task, TaskClient
from ipytaskfarm.core.errors import UnpickleableException

pytestmark = [pytest.mark.farm, pytest.mark.usefixtures("cleared")]


class Study:
    def __init__(self, client: Any) -> None:
        self.client = client
        self.factor = 3

    def step(self, x: int) -> int:
        return x * self.factor

    def submits(self, x: int) -> Any:
        return self.client.map(abs, [x])

    def itself(self) -> Study:
        return self


@dataclass
class Nested:
    study: Study
    clients: dict[str, Any] = field(default_factory=dict)

    def step(self, x: int) -> int:
        return self.study.step(x)


class Own(TaskClient):
    pass


def test_methods_of_an_object_that_holds_a_client(tc: TaskClient, farm: Farm) -> None:
    with (
        Own(farm) as own,
        MultiEngineClient(farm) as mec,
        Executor(tc) as ex,
        Pool(tc) as pool,
        ipp.Client(farm) as rc,
    ):
        for client in (tc, own, mec, farm, ex, pool, tc.create_job("held"), rc, rc[:], rc.load_balanced_view()):
            study = Study(client)
            assert tc.map(study.step, range(4)) == [0, 3, 6, 9]
            assert ex.submit(study.step, 2).result() == 6
            assert list(ex.map(lambda x, study=study: study.step(x) + 1, [1, 2])) == [4, 7]
            study.factor = 5
            assert pool.map(study.step, range(3)) == [0, 5, 10]
            assert tc.map(Nested(study).step, [1]) == [5]


def test_a_task_that_uses_the_client_is_told(tc: TaskClient) -> None:
    with pytest.raises(UnpickleableException, match=r"self.client.map: self.client was a TaskClient .* `current_task"):
        tc.map(Study(tc).submits, [1])


def test_the_object_may_come_back(tc: TaskClient) -> None:
    back = tc.run(Task(Study(tc).itself), block=True).result
    assert back.factor == 3
    with pytest.raises(UnpickleableException, match="inside a task"):
        back.client.map(abs, [1])


def test_a_client_that_stands_elsewhere_is_refused(tc: TaskClient) -> None:
    with pytest.raises(UnpickleableException, match=r"clients\['a'\]: a TaskClient cannot travel"):
        tc.map(Nested(Study(None), {"a": tc}).step, [1])
    with pytest.raises(UnpickleableException, match="TaskClient cannot travel"):
        tc.map(lambda x: tc.map(abs, [x]), [1])
