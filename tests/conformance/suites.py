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
    """

    source: str
    prepare: Callable[[Path, Path], list[str]]
    select: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)


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

from ._test_process_executor import AsCompletedTests, ExecutorShutdownTest, ExecutorTest, WaitTests


class FarmMixin:
    executor_type = Executor
    worker_count = 2

    @pytest.fixture(autouse=True)
    def setup_method(self):
        self.executor = Executor(max_workers=self.worker_count)
        yield
        self.executor.shutdown()

    def _prime_executor(self):
        self.executor.submit(abs, 1).result()

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
            "test_resource_warning": "writes a state into the pool",
            "test_map_unplicklable": "the error names the argument that cannot travel; the original error is its cause",
            "test_unpickleable_result": "a lambda can travel here, so nothing is raised",
        },
    ),
    "ipyparallel": Suite(
        "the folder with the package ipyparallel: site-packages, or its source package, unpacked",
        ipyparallel_suite.prepare,
        expected=ipyparallel_suite.EXPECTED,
    ),
    "loky": Suite("loky's source package, unpacked", _loky, expected={}),
    "joblib": Suite("joblib's source package, unpacked", _joblib, select="ipytaskfarm"),
}
