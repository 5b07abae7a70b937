"""Rules of tasks, for Hypothesis: what the machine of `tests.simulated.test_scheduler_machine` submits."""

from __future__ import annotations

from hypothesis import strategies as st

from ipytaskfarm.core.messages.task_types import Recovery, Rules
from ipytaskfarm.core.requirements import Asks, Environment, Recycle, ResourceAmount

ASKS = st.one_of(
    st.none(),
    st.none(),
    st.builds(
        Asks,
        environment=st.one_of(st.none(), st.sampled_from([Environment(identity=x, name=x) for x in "AB"])),
        recycle=st.one_of(
            st.none(),
            st.builds(
                Recycle,
                after_tasks=st.one_of(st.none(), st.integers(1, 3)),
                idle_s=st.one_of(st.none(), st.just(1.0)),
                on_failure=st.booleans(),
                on_job_end=st.booleans(),
                when_unreferenced=st.booleans(),
                keep_session=st.booleans(),
            ),
        ),
        resources=st.one_of(
            st.just(()), st.just((ResourceAmount("cores", 1, 2),)), st.just((ResourceAmount("gpu", 1, 1),))
        ),
        exclusive=st.sampled_from([False, False, True]),
        group=st.just("g"),
        max_parallel=st.one_of(st.none(), st.just(1)),
        max_parallel_per_node=st.one_of(st.none(), st.just(1)),
        placement=st.sampled_from([None, "random", "most_recent", "nearest_environment"]),
        locality=st.one_of(st.none(), st.just("loc")),
    ),
)

PLAIN_COROUTINE = Rules(coroutine=True)
RULES = st.one_of(
    st.none(),
    st.just(PLAIN_COROUTINE),
    st.builds(
        Rules,
        retries=st.integers(0, 2),
        lost_retries=st.one_of(st.none(), st.integers(0, 2)),
        priority=st.integers(-1, 1),
        time_limit_s=st.sampled_from([None, None, 10.0]),
        targets=st.one_of(st.none(), st.just((0,)), st.just((0, 1))),
        depend=st.one_of(st.none(), st.none(), st.just("dep")),
        asks=ASKS,
        job=st.one_of(st.none(), st.sampled_from(["j", "k"])),
        coroutine=st.booleans(),
        freeze=st.booleans(),
        idempotent=st.booleans(),
        recovery=st.one_of(
            st.none(), st.none(), st.just(Recovery(b"r", None, Rules(retries=1, recovery=Recovery(b"s"))))
        ),
    ),
)
