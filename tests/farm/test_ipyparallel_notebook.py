"""A notebook of ipyparallel with one changed import, in a kernel of its own; an engine is killed in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipytaskfarm import Farm
from tests.support.farms import DEADLINE_S, until_engines
from tests.support.notebooks import executed

pytestmark = pytest.mark.farm

CELLS = (
    """
import os, signal, time
from pathlib import Path
import ipytaskfarm.ipyparallel as ipp
rc = ipp.Client({connection!r})
everywhere, balanced = rc[:], rc.load_balanced_view()
balanced.retries = 2
len(rc.ids)
""",
    """
%%px --local
import random
SCALE = 4
""",
    """
def hits(seed, count=20_000):
    Path(began, f"{{seed}}-{{os.getpid()}}").touch()
    while not Path(began, "killed").exists():
        time.sleep(0.01)
    points = random.Random(seed)
    return sum(points.random() ** 2 + points.random() ** 2 < 1 for _ in range(count))

everywhere.block = True
everywhere.push({{"began": {began!r}}})
everywhere.execute("import os, time; from pathlib import Path")
began = {began!r}
pids = everywhere.apply(os.getpid)
result = balanced.map_async(hits, range(12))
""",
    """
while not any(path.name.endswith(f"-{{pids[0]}}") for path in Path(began).iterdir()):
    time.sleep(0.01)
os.kill(pids[0], signal.SIGKILL)
while Path(f"/proc/{{pids[0]}}").exists():
    time.sleep(0.01)
Path(began, "killed").touch()
found = result.get({deadline})
rc.wait_for_engines(2, timeout={deadline})
found == [hits(seed) for seed in range(12)]
""",
    "SCALE * sum(found) / (12 * 20_000)",
    "%px random.Random(7).randrange(1000)",
    "rc.close()",
)


def test_a_notebook_goes_on_after_the_loss_of_an_engine(farm: Farm, tmp_path: Path) -> None:
    until_engines(farm, 2)
    given = {"connection": str(farm.connection_file), "began": str(tmp_path), "deadline": DEADLINE_S}
    cells = executed([source.strip().format(**given) for source in CELLS], tmp_path, DEADLINE_S).cells
    values = [out.data["text/plain"] for cell in cells for out in cell.outputs if out.output_type == "execute_result"]
    assert values == ["2", "True", "3.1414166666666667"]
    of_engines = [out.data["text/plain"] for out in cells[-2].outputs]
    assert of_engines == ["Out[0:3]: 331", "Out[1:3]: 331"], "the replacement has the names of the lost engine"
