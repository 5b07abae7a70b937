"""joblib's backend ``ipytaskfarm``: `Parallel` calls and scikit-learn on a real farm."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

import ipytaskfarm.joblib as adapter
from ipytaskfarm import TaskClient
from ipytaskfarm.adapters.joblib_backend import BatchSizes
from ipytaskfarm.core import errors
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = pytest.mark.farm


def square(x: int) -> int:
    return x * x


def squares(n: int) -> list[int]:
    found: list[int] = Parallel(n_jobs=2)(delayed(square)(i) for i in range(n))
    return found


def fails_at_three(x: int) -> int:
    print(f"item {x}")
    if x == 3:
        raise ZeroDivisionError("three")
    return x


def kills_its_engine_once(x: int, marks: Path) -> int:
    if x == 5 and not (marks / "killed").exists():
        (marks / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_values_come_in_order_and_leave_nothing_on_the_farm(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc):
        assert Parallel()(delayed(square)(i) for i in range(500)) == [i * i for i in range(500)]
    assert tc.queue_status() == {"scheduled": 0, "pending": 0, "succeeded": 0, "failed": 0}


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_values_are_generated(tc: TaskClient, return_as: Any) -> None:
    with parallel_config("ipytaskfarm", client=tc):
        assert sorted(Parallel(return_as=return_as)(delayed(square)(i) for i in range(20))) == [
            i * i for i in range(20)
        ]


def test_jobs_are_counted_as_by_joblib(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc, n_jobs=-1):
        assert joblib.effective_n_jobs(-1) == 2
        assert joblib.effective_n_jobs(-2) == 1
        assert joblib.effective_n_jobs(7) == 7
        with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
            Parallel(n_jobs=0)(delayed(square)(i) for i in range(2))


def test_an_error_is_raised_with_its_type_and_its_task_stays(
    tc: TaskClient, capsys: pytest.CaptureFixture[str]
) -> None:
    tc.clear()
    with (
        parallel_config("ipytaskfarm", client=tc),
        pytest.raises(ZeroDivisionError, match="three"),
    ):
        Parallel()(delayed(fails_at_three)(i) for i in range(10))
    assert [(group.etype, len(group.ids)) for group in tc.failures() if group.etype] == [("ZeroDivisionError", 1)]
    assert {"item 0", "item 3"} <= set(capsys.readouterr().out.splitlines())
    tc.clear()


def fails_with_a_cause(text: str) -> int:
    try:
        return parsed(text)
    except ValueError as error:
        raise KeyError(text) from error


def parsed(text: str) -> int:
    return int(text)


def calls_parsed(text: str) -> int:
    return parsed(text)


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_an_error_is_shown_with_the_frames_of_the_call(tc: TaskClient, return_as: Any) -> None:
    with parallel_config("ipytaskfarm", client=tc), pytest.raises(ValueError, match="invalid literal") as raised:
        list(Parallel(return_as=return_as)(delayed(calls_parsed)(text) for text in ["1", "x"]))
    text = "".join(traceback.format_exception(raised.value))
    assert "in calls_parsed\n    return parsed(text)" in text
    assert "in parsed\n    return int(text)" in text
    assert "in run_batch" not in text
    tc.clear()


def test_an_error_keeps_its_cause_and_shows_its_own_frames(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc), pytest.raises(KeyError) as raised:
        Parallel()(delayed(fails_with_a_cause)(text) for text in ["1", "x"])
    assert type(raised.value.__cause__) is ValueError
    text = "".join(traceback.format_exception(raised.value))
    assert "in fails_with_a_cause\n    raise KeyError(text) from error" in text
    assert text.count("\nKeyError: 'x'\n") == 2
    tc.clear()


def test_what_cannot_travel_is_an_error_and_not_a_hang(tc: TaskClient) -> None:
    import threading

    with (
        parallel_config("ipytaskfarm", client=tc),
        pytest.raises(pickle.PicklingError, match="lock") as raised,
    ):
        Parallel()(delayed(type)(threading.Lock()) for _ in range(4))
    assert isinstance(raised.value, errors.UnpickleableException)
    with parallel_config("ipytaskfarm", client=tc), pytest.raises(TypeError, match="cannot pickle") as unsent:
        Parallel()(delayed(threading.Lock)() for _ in range(2))
    assert type(unsent.value) is TypeError  # of a value joblib's own backends raise what pickle raised


def test_an_engine_that_is_lost_for_good_is_joblibs_error_too(tc: TaskClient) -> None:
    with (
        parallel_config("ipytaskfarm", client=tc, retries=0),
        pytest.raises(TerminatedWorkerError, match="exited with code 7") as raised,
    ):
        Parallel()(delayed(os._exit)(7) for _ in range(1))
    assert isinstance(raised.value, errors.EngineLost)
    tc.clear()


def generated(n: int) -> list[int]:
    kinds = ("generator", "generator_unordered")
    return [sum(Parallel(n_jobs=2, return_as=kind)(delayed(square)(i) for i in range(n))) for kind in kinds]


def test_parallel_calls_beside_one_another_do_not_end_one_another(tc: TaskClient) -> None:
    def values(n: int) -> Any:
        return Parallel(return_as="generator", batch_size=1)(delayed(square)(i) for i in range(n))

    with parallel_config("ipytaskfarm", client=tc):
        assert [sum(Parallel()(delayed(square)(j) for j in range(i))) for i in values(3)] == [0, 0, 14]
        assert list(itertools.zip_longest(values(3), values(5))) == [(0, 0), (1, 1), (4, 4), (None, 9), (None, 16)]
        closed, going_on = values(20), values(20)
        assert next(closed) == 0
        with pytest.warns(UserWarning, match="have been cancelled"):
            closed.close()
        assert list(going_on) == [i * i for i in range(20)]
    assert tc.queue_status()["failed"] == 0


def test_a_call_within_a_call_generates_its_values(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc):
        assert Parallel(n_jobs=2)(delayed(generated)(n) for n in (3, 4)) == [[5, 5], [14, 14]]


def openmp_threads(inner: bool) -> list[str | None]:
    return [os.environ.get("OMP_NUM_THREADS")] + (Parallel()([delayed(openmp_threads)(False)])[0] if inner else [])


def test_the_threads_of_calls_are_those_of_the_configuration(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc, inner_max_num_threads=7):
        assert Parallel()([delayed(openmp_threads)(True)]) == [["7", "7"]]
    with parallel_config("ipytaskfarm", client=tc):
        assert "7" not in Parallel()([delayed(openmp_threads)(False)])[0]


def test_calls_within_calls_are_children(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc):
        assert Parallel(n_jobs=2)(delayed(squares)(n) for n in (3, 4)) == [[0, 1, 4], [0, 1, 4, 9]]


def write_sum(data: Any, sums: Any, i: int) -> None:
    sums[i] = data[i].sum()


def test_a_writable_memory_map_is_shared(tc: TaskClient, tmp_path: Path) -> None:
    """The example of joblib's documentation, "Writable memmap (shared memory) numpy arrays"."""
    joblib.dump(np.ones((20, 1000)), tmp_path / "data")
    data = joblib.load(tmp_path / "data", mmap_mode="r")
    sums = np.memmap(tmp_path / "sums", dtype=data.dtype, shape=20, mode="w+")
    with parallel_config("ipytaskfarm", client=tc):
        Parallel()(delayed(write_sum)(data, sums, i) for i in range(20))
    assert sums.tolist() == [1000.0] * 20


def pids_of(count: int) -> set[int]:
    return set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(count)))


def test_a_later_nested_call_finds_the_engine_of_the_one_before(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc):
        pids = [Parallel(n_jobs=2)(delayed(pids_of)(3) for _ in range(2)) for _ in range(3)]
    engines = set().union(*(found for each in pids for found in each))
    assert len(engines) <= 5, "one more engine for each of two calls that waited, and hardly another one"


def where_threads_run(count: int) -> set[tuple[int, str]]:
    def here() -> tuple[int, str]:
        return os.getpid(), joblib.parallel.get_active_backend()[0].__class__.__name__

    found = Parallel(n_jobs=2, prefer="threads")(delayed(here)() for _ in range(count))
    assert {pid for pid, _ in found} == {os.getpid()}
    return set(found)


def test_calls_within_calls_that_prefer_threads_are_threads_of_their_engine(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc):
        assert all(Parallel(n_jobs=2)(delayed(where_threads_run)(4) for _ in range(2)))


def test_a_killed_engine_costs_no_result(tc: TaskClient, tmp_path: Path) -> None:
    with parallel_config("ipytaskfarm", client=tc):
        found = Parallel()(delayed(kills_its_engine_once)(i, tmp_path) for i in range(20))
    assert found == list(range(20))
    assert (tmp_path / "killed").exists()


def test_rules_of_a_task_are_those_of_a_batch(tc: TaskClient) -> None:
    with (
        parallel_config("ipytaskfarm", client=tc, time_limit=2, retries=0),
        pytest.raises(errors.TimeLimitExceeded),
    ):
        Parallel()(delayed(time.sleep)(60) for _ in range(2))
    tc.clear()


def introduce(name: str) -> None:
    os.environ["IPYTASKFARM_JOBLIB_TEST"] = name


def introduced(_: object) -> str | None:
    return os.environ.get("IPYTASKFARM_JOBLIB_TEST")


def raises_at_start() -> None:
    raise ZeroDivisionError("in the initializer")


@by_hand
def test_each_engine_is_initialized_before_its_first_batch(tc: TaskClient) -> None:
    with parallel_config("ipytaskfarm", client=tc, initializer=introduce, initargs=("first",)):
        assert set(Parallel()(delayed(introduced)(n) for n in range(50))) == {"first"}
        # What a call gives itself goes before what the backend was given, for this call alone.
        assert set(Parallel(initargs=("second",))(delayed(introduced)(n) for n in range(50))) == {"second"}
        assert set(Parallel()(delayed(introduced)(n) for n in range(50))) == {"first"}
    with parallel_config("ipytaskfarm", client=tc, initializer=raises_at_start), pytest.raises(errors.TaskFarmError):
        Parallel()(delayed(introduced)(n) for n in range(4))
    tc.clear()


def test_a_call_gives_rules_of_its_own(tc: TaskClient) -> None:
    with pytest.raises(errors.TimeLimitExceeded):
        Parallel(n_jobs=2, backend="ipytaskfarm", client=tc, time_limit=1, retries=0)(
            delayed(time.sleep)(60) for _ in "ab"
        )
    tc.clear()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"retris": 3}, TypeError), ({"retries": -1}, ValueError), ({"initializer": 3}, TypeError)],
)
def test_arguments_that_mean_nothing_are_refused(
    tc: TaskClient, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        parallel_config("ipytaskfarm", client=tc, **arguments)
    with pytest.raises(error, match=next(iter(arguments))):
        Parallel(n_jobs=2, backend="ipytaskfarm", client=tc, **arguments)(delayed(square)(n) for n in range(3))


def test_a_misspelt_argument_gets_the_nearest_one(tc: TaskClient) -> None:
    with pytest.raises(TypeError, match="joblib's backend has no argument 'clientt', did you mean 'client'"):
        parallel_config("ipytaskfarm", clientt=tc)


def test_batches_grow_while_they_are_quick_and_shrink_at_once() -> None:
    sizes = BatchSizes()
    sizes.ended(1, 1e-6)
    grown = sizes.size
    assert grown > 1
    sizes.ended(grown, 1e-5)
    assert sizes.size > grown
    sizes.ended(grown, 10.0)
    assert sizes.size == 1


def test_an_interrupted_call_aborts_its_batches(tc: TaskClient) -> None:
    with (
        parallel_config("ipytaskfarm", client=tc),
        pytest.raises(multiprocessing.TimeoutError),
    ):
        Parallel(timeout=0.5)(delayed(time.sleep)(60) for _ in range(4))
    eventually(lambda: tc.queue_status()["pending"] == 0)
    tc.clear()


def test_large_arrays_are_sent_once(tc: TaskClient) -> None:
    array = np.arange(1_000_000.0)
    with parallel_config("ipytaskfarm", client=tc):
        assert Parallel()(delayed(np.max)(array) for _ in range(10)) == [999_999.0] * 10


def test_a_grid_search_finds_what_it_finds_alone(tc: TaskClient) -> None:
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    data, target = load_iris(return_X_y=True)
    search = GridSearchCV(SVC(), {"C": [0.1, 1.0, 10.0], "gamma": [0.01, 0.1]}, cv=3)
    alone = search.fit(data, target).best_params_
    forest = RandomForestClassifier(20, random_state=0)
    score = forest.fit(data, target).score(data, target)
    with parallel_config("ipytaskfarm", client=tc):
        assert search.fit(data, target).best_params_ == alone
        assert forest.fit(data, target).score(data, target) == score


def test_a_grid_search_and_a_forest_lose_an_engine_and_nothing_else(tc: TaskClient, tmp_path: Path) -> None:
    from sklearn.base import BaseEstimator
    from sklearn.datasets import load_iris
    from sklearn.ensemble import BaggingClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    class Tree(DecisionTreeClassifier):  # type: ignore[misc]
        """A tree whose first fit on an engine kills it."""

        def __init__(self, mark: Path, max_depth: int = 3, random_state: int = 0) -> None:
            super().__init__(max_depth=max_depth, random_state=random_state)
            self.mark = mark

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803
            if os.getpid() != here and not self.mark.exists():
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().fit(X, y, sample_weight)

    here = os.getpid()
    data, target = load_iris(return_X_y=True)
    programs: dict[str, BaseEstimator] = {
        "search": GridSearchCV(Tree(tmp_path / "search"), {"max_depth": [1, 2, 3]}, cv=3),
        "forest": BaggingClassifier(Tree(tmp_path / "forest"), 10, random_state=0),
    }
    for name, program in programs.items():
        alone = program.fit(data, target).predict(data)
        with parallel_config("ipytaskfarm", client=tc, n_jobs=2):
            program.set_params(n_jobs=2)
            assert (program.fit(data, target).predict(data) == alone).all()
        assert (tmp_path / name).exists(), "an engine was killed"


def test_the_adapter_names_its_backend() -> None:
    with parallel_config("ipytaskfarm") as config:
        assert type(config["backend"]) is adapter.FarmBackend
