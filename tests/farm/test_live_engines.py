"""What the live view tells about engines: their memory against the limit, and the frozen ones."""

from __future__ import annotations

from ipytaskfarm import Farm, Task
from ipytaskfarm.core.messages.view import EngineLine, EnginePage, ReadEngines
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.view.fold import FarmFold
from tests.support.polling import DEADLINE_S, eventually

MIB = 2**20


def _page(farm: Farm) -> EnginePage:
    with connect(str(farm.connection_file)) as asked:
        page = asked.answer(ReadEngines())
        assert isinstance(page, EnginePage)
        return page


def _line(farm: Farm) -> EngineLine:
    return _page(farm).rows[0]


def test_memory_is_told_with_its_limit_and_frozen_engines_with_their_end() -> None:
    with Farm(n=1, memory_limit=600 * MIB, drain=0) as farm, farm.task_client() as tc:
        eventually(lambda: 0 < _line(farm).memory < 300 * MIB, DEADLINE_S)
        before = _line(farm).memory
        assert _line(farm).memory_limit == 600 * MIB
        tc.run(Task(f"import time; held = bytearray(200 * {MIB}); time.sleep(600)", name="large"))
        eventually(lambda: _line(farm).memory >= before + 190 * MIB, DEADLINE_S)
        tc.abort(tc.tasks(state="unfinished"))

        broken = tc.run(Task("1 / 0", name="broken", on_failure="hold"))
        tc.barrier([broken])
        eventually(lambda: [row.task for row in _page(farm).frozen] == [broken], DEADLINE_S)
        fold = FarmFold()
        fold.engine_page(_page(farm))
        (frozen,) = fold.picture.data["frozen"]
        assert (frozen["task"], frozen["error"], frozen["state"]) == (
            broken,
            "ZeroDivisionError: division by zero",
            "frozen",
        )
