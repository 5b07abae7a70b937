"""Which public suites are run, how they are prepared, and which of their tests cannot pass.

A suite comes from the source package of its project (``pip download --no-deps --no-binary :all: joblib``, unpacked), or
from the folder of a Python's standard library.  It is copied into a temporary folder; nothing of it is kept here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance import ipyparallel_suite


@dataclass(frozen=True)
class Suite:
    """One public suite.

    source: what `--source` names, for people.
    prepare: copies the suite from the source into an empty folder; returns the files to run, relative to the folder.
    select: pytest's ``-k``.  "": all tests.
    expected: a part of a test's name -> the reason why tests of such names cannot pass.
    timed: a part of a test's name -> the reason why tests of such names pass or fail with the speed of the machine.
    """

    source: str
    prepare: Callable[[Path, Path], list[str]]
    select: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)
    timed: Mapping[str, str] = field(default_factory=dict)


def _joblib(source: Path, folder: Path) -> list[str]:
    """Copy joblib's tests, with the one line that a user adds: it puts our backend among joblib's."""
    shutil.copytree(source / "joblib" / "test", folder / "joblib_tests")
    file = folder / "joblib_tests" / "test_parallel.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace("\nimport joblib\n", "\nimport ipytaskfarm.joblib\nimport joblib\n", 1), encoding="utf-8"
    )
    return ["joblib_tests/test_parallel.py"]


EXECUTOR_TESTS = """
import unittest

from ipytaskfarm import Executor
from test import support

from .executor import ExecutorTest
from .test_as_completed import AsCompletedTests
from .test_init import FailingInitializerMixin, InitializerMixin
from .test_process_pool import ProcessPoolExecutorTest
from .test_shutdown import ExecutorShutdownTest
from .test_wait import WaitTests
from .util import ExecutorMixin


class FarmMixin(ExecutorMixin):
    executor_type = Executor
    worker_count = 2


def _tests(*mixins):
    return type("Farm" + mixins[0].__name__, (*mixins, FarmMixin, unittest.TestCase), {"__module__": __name__})


FarmExecutorTest = _tests(ExecutorTest)
FarmAsCompletedTest = _tests(AsCompletedTests)
FarmWaitTest = _tests(WaitTests)
FarmShutdownTest = _tests(ExecutorShutdownTest)
FarmInitializerTest = _tests(InitializerMixin)
FarmFailingInitializerTest = _tests(FailingInitializerMixin)


class FarmPoolTest(FarmMixin, unittest.TestCase):
    test_map_chunksize = ProcessPoolExecutorTest.test_map_chunksize
    test_traceback = ProcessPoolExecutorTest.test_traceback
    _test_traceback = ProcessPoolExecutorTest._test_traceback


# Only the test classes of this file.
del ExecutorTest, AsCompletedTests, WaitTests, ExecutorShutdownTest, InitializerMixin, FailingInitializerMixin
del ProcessPoolExecutorTest, FarmMixin
"""
"""The mixins of CPython's tests with our executor in the place of its own."""


def _executor(source: Path, folder: Path) -> list[str]:
    """Copy CPython's tests of executors, with a file that runs their mixins on a farm."""
    tests = folder / "executor_tests"
    shutil.copytree(source / "test" / "test_concurrent_futures", tests, ignore=shutil.ignore_patterns("__pycache__"))
    # Scripts in them import the executor by its name.
    file = tests / "test_shutdown.py"
    text = file.read_text(encoding="utf-8").replace("from concurrent.futures import {", "from ipytaskfarm import {")
    file.write_text(text, encoding="utf-8")
    (tests / "test_farm.py").write_text(EXECUTOR_TESTS, encoding="utf-8")
    return ["executor_tests/test_farm.py"]


POOL_TESTS = """
import unittest

from ipytaskfarm import Pool

from . import _test_multiprocessing as given


def _tests(cases):
    return type(f"Farm{cases.__name__}", (cases, unittest.TestCase), {
        "__module__": __name__, "TYPE": "processes", "Pool": staticmethod(Pool),
    })


FarmPool = _tests(given._TestPool)
FarmPoolWorkerErrors = _tests(given._TestPoolWorkerErrors)
FarmPoolWorkerLifetime = _tests(given._TestPoolWorkerLifetime)
"""
"""CPython's tests of pools with our pool in the place of its own."""


def _pool(source: Path, folder: Path) -> list[str]:
    """Copy CPython's tests of multiprocessing, with a file that runs those of its pool on a farm."""
    tests = folder / "pool_tests"
    tests.mkdir()
    (tests / "__init__.py").touch()
    text = (source / "test" / "_test_multiprocessing.py").read_text(encoding="utf-8")
    text = text.replace("multiprocessing.Pool(", "ipytaskfarm.Pool(").replace(
        "from multiprocessing import Pool\n", "from ipytaskfarm import Pool\n"
    )
    # The class of these methods has a pool, which cannot travel.
    for name in ("_test_traceback", "_test_wrapped_exception"):
        text = text.replace(f"@classmethod\n    def {name}(cls):", f"@staticmethod\n    def {name}():")
    text = text.replace("\nimport unittest\n", "\nimport ipytaskfarm\nimport unittest\n", 1)
    (tests / "_test_multiprocessing.py").write_text(text, encoding="utf-8")
    (tests / "test_farm.py").write_text(POOL_TESTS, encoding="utf-8")
    return ["pool_tests/test_farm.py"]


LOKY_TESTS = """
import pytest

from ipytaskfarm import Executor
from loky.backend import get_context

from ._test_process_executor import AsCompletedTests, ExecutorShutdownTest, ExecutorTest, WaitTests, mul


class FarmExecutor(Executor):
    # Without the arguments that are loky's own.
    def __init__(self, max_workers=None, context=None, **kwargs):
        super().__init__(max_workers, **kwargs)

    def shutdown(self, wait=True, kill_workers=False):
        if kill_workers:
            self.terminate_workers()
        super().shutdown(wait)


class FarmMixin:
    executor_type = FarmExecutor
    context = get_context("loky")
    worker_count = 2

    @pytest.fixture(autouse=True)
    def setup_method(self):
        self.executor = FarmExecutor(max_workers=self.worker_count)
        # The engines import the module of the tests, which takes longer than some of these wait.
        assert list(self.executor.map(mul, range(4), range(4))) == [0, 1, 4, 9]
        yield
        self.executor.shutdown()

    def _prime_executor(self):
        pass

    @staticmethod
    def check_no_running_workers(patience=5, sleep_duration=0.01):
        pass


class TestFarmShutdown(FarmMixin, ExecutorShutdownTest):
    pass


class TestFarmWait(FarmMixin, WaitTests):
    pass


class TestFarmAsCompleted(FarmMixin, AsCompletedTests):
    pass


class TestFarmExecutor(FarmMixin, ExecutorTest):
    pass
"""
"""loky's tests of executors with our executor in the place of its own."""


def _loky(source: Path, folder: Path) -> list[str]:
    """Copy loky and its tests, with a file that runs those of its executor on a farm."""
    shutil.copytree(source / "loky", folder / "loky")
    tests = folder / "loky_tests"
    shutil.copytree(source / "tests", tests, ignore=shutil.ignore_patterns("__pycache__", "_openmp"))
    file = tests / "_test_process_executor.py"
    text = file.read_text(encoding="utf-8")
    # Scripts in them import the executor by its name.
    for given, ours in (
        (
            "from loky.process_executor import {executor_type}\n",
            "from ipytaskfarm import Executor as {executor_type}\n",
        ),
        ("from tests._test", "from loky_tests._test"),
        (", context=context)\n", ")\n"),
    ):
        text = text.replace(given, ours)
    file.write_text(text, encoding="utf-8")
    (tests / "test_farm.py").write_text(LOKY_TESTS, encoding="utf-8")
    return ["loky_tests/test_farm.py"]


LIBRARY = (
    "the folder of the standard library of the Python that runs this, 3.13 or newer: python3.13 -c 'import os; "
    "print(os.path.dirname(os.__file__))'"
)

TRACEBACK = "the engine's frames are the exception's own traceback; its cause is the one that the user's code gave it"

SUITES: dict[str, Suite] = {
    "executor": Suite(
        LIBRARY,
        _executor,
        expected={
            "test_traceback": TRACEBACK,
        },
    ),
    "pool": Suite(
        LIBRARY,
        _pool,
        expected={
            "test_traceback": TRACEBACK,
            "test_make_pool": "looks into the pool for the list of its processes",
            "test_pool_worker_lifetime": "looks into the pool for the list of its processes",
            "test_unpickleable_result": "a lambda can travel here, so nothing is raised",
        },
    ),
    "ipyparallel": Suite(
        "the folder with the package ipyparallel: site-packages, or its source package, unpacked",
        ipyparallel_suite.prepare,
        expected=ipyparallel_suite.EXPECTED,
        timed=ipyparallel_suite.TIMED,
    ),
    "loky": Suite(
        "loky's source package, unpacked",
        _loky,
        # The first starts ten farms within one another to find loky's own limit, the second sends 2.2 GB.
        select="not test_max_depth and not test_no_failure_on_large_data_send",
        expected={
            "test_traceback": TRACEBACK,
            "test_exception_cause_with_tblib": TRACEBACK,
            "test_shutdown_with_sys_exit_at_pickle": "arguments are pickled by the caller, who is left by sys.exit",
            **dict.fromkeys(
                (
                    "test_processes_terminate",
                    "test_processes_terminate_on_executor_gc",
                    "test_processes_crash_handling_after_executor_gc",
                    "test_context_manager_shutdown",
                    "test_del_shutdown",
                    "test_shutdown_no_wait",
                    "test_shutdown_deadlock_pickle",
                    "test_killed_child",
                ),
                "looks into the executor for its processes and threads",
            ),
            **dict.fromkeys(
                ("test_first_exception", "test_timeout", "test_shutdown_and_kill_workers"),
                "the workers share a multiprocessing.Event with the test, as children of its process can",
            ),
            "test_exited_child": "only the call on the lost engine fails, and the executor takes new ones",
            "test_memory_leak_protection": "looks at loky's own measure of memory; environment.recycle is ours",
            "test_serialization": "reducers for one executor are loky's own arguments",
            "test_worker_timeout": "workers that end when idle are loky's own argument",
            "test_child_env_executor": "variables for one executor are loky's own argument; a TaskEnvironment has them",
        },
    ),
    "joblib": Suite("joblib's source package, unpacked", _joblib, select="ipytaskfarm"),
}
