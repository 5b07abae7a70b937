"""The practical test: a farm of one engine is started, given a task, and ended."""

from __future__ import annotations

import time

from ipytaskfarm.client import StringTask
from ipytaskfarm.core import errors
from ipytaskfarm.deployment.farm import Farm
from ipytaskfarm.doctor import Finding, fine, wrong

TRIAL_S = 60.0


def trial() -> Finding:
    """Run the test, which takes some seconds and leaves nothing."""
    began_s = time.monotonic()
    try:
        with Farm(n=1, start_timeout=TRIAL_S) as farm, farm.task_client() as tc:
            ready_s = time.monotonic()
            task_id = tc.run(StringTask("x = 6 * 7", pull="x"))
            tc.barrier([task_id], timeout=TRIAL_S)
            answer = tc.get_task_result(task_id)["x"]
            done_s = time.monotonic()
    except (errors.TaskFarmError, OSError, TimeoutError) as error:
        return wrong(
            "try", " ".join(str(error).split()), "what is wrong above, first; then see what the engine printed"
        )
    if answer != 42:
        return wrong("try", f"an engine says that 6 * 7 is {answer!r}", "replace this Python")
    took = f"ready after {ready_s - began_s:.1f} s, a task done after {(done_s - ready_s) * 1000:.0f} ms more"
    return fine("try", f"a farm of one engine: {took}; it is gone")
