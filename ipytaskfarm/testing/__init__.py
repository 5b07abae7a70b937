"""A farm in memory, on a clock that a test moves: see docs/testing.md.

from ipytaskfarm.testing import Fail, SimulatedFarm, Succeed

farm = SimulatedFarm(engines=1)
task = farm.submit(Task(download, retries=1, retry_delay=60), [Fail(OSError("away")), Succeed(b"page")])
farm.advance(59)
"""

from .farm import SimulatedFarm, SimulatedRun
from .outcomes import Call, Fail, Hang, LoseEngine, Outcome, OutcomeOf, Succeed

__all__ = [
    "Call",
    "Fail",
    "Hang",
    "LoseEngine",
    "Outcome",
    "OutcomeOf",
    "SimulatedFarm",
    "SimulatedRun",
    "Succeed",
]
