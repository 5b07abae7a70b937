"""Tasks of all kinds for a page that shows them: failed ones, loud ones, and names that want to be more than text."""

from __future__ import annotations

from ipytaskfarm import Task, TaskClient
from tests.support.polling import eventually

HOSTILE = "<img src=x onerror=alert(1)>"
LONG_NAME = f"\x1b[31m{HOSTILE}" + "n" * 5000
LOUD = (
    "import os; os.write(1, b'<script>alert(2)</script>\\n\\x1b[31mred\\x1b[0m caf\\xe9 \\xff\\n');"
    "print('y' * 10_000_000); print('the end')"
)


def fail(n: int) -> None:
    if n % 2:
        raise ValueError(f"no convergence in step {n} {HOSTILE}")
    raise KeyError("missing")


def fill(tc: TaskClient) -> None:
    """Tasks of all kinds: failed by two causes, succeeded, loud, with a hostile name, and some that cannot run."""
    job = tc.create_job("sweep")
    for n in range(30):
        job.add_task(Task(fail, args=(n,), name="attempt") if n < 10 else Task(pow, args=(n, 2), name="power"))
    job.submit()
    # One engine may run all quick tasks: these make sure that both have a part in the stream.
    tc.run(Task(LOUD, name="loud", targets=[0]))
    tc.run(Task("a = 1", name=HOSTILE, targets=[1]))
    for _ in range(3):
        tc.run(Task("a = 1", name="elsewhere", targets=[99]))
    named = tc.create_job(LONG_NAME)
    named.add_task(Task("a = 1", name=LONG_NAME))
    named.submit()
    tc.flush()
    eventually(lambda: len(tc.tasks(state="unfinished")) == 3, 60.0)
