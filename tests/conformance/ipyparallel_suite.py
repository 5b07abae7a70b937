"""ipyparallel's own tests, with our modules in the place of its own.

A package ``ipyparallel`` is made in the temporary folder.  It has our names, the suite's files, and a cluster that is a
farm.
"""

from __future__ import annotations

import shutil
from pathlib import Path

FILES = (
    "test_view.py", "test_view_broadcast.py", "test_asyncresult.py", "test_lbview.py", "test_dependency.py",
    "test_executor.py", "test_joblib.py", "test_magics.py", "test_remotefunction.py", "test_client.py",
)  # fmt: skip
"""The tests of the interface.  The other files test ipyparallel's own processes and formats: its database, launchers,
canning, serialization, application classes."""

MODULES = {
    "__init__": """
import ipytaskfarm.ipyparallel
from ipytaskfarm.ipyparallel import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, register_joblib_backend


def __getattr__(name):
    if name == "Client":
        from ipyparallel.client.client import Client

        return Client
    return getattr(ipytaskfarm.ipyparallel, name)
""",
    "error": "from ipytaskfarm.ipyparallel.error import *\n",
    "util": """
from datetime import UTC as utc
from ipytaskfarm.ipyparallel import interactive
""",
    "serialize": '''
"""Of canning, the tests of dependencies need that an uncanned function has its dependency met."""
from ipytaskfarm.ipyparallel import dependent


def can(function):
    return function


def uncan(function, names):
    if isinstance(function, dependent):
        function.check_dependency()
    return function
''',
    "client/__init__": "",
    "client/view": """
from ipytaskfarm.adapters.ipyparallel.remote_functions import LazyMapIterator
from ipytaskfarm.ipyparallel import LoadBalancedView
""",
    "client/client": '''
import ipytaskfarm.ipyparallel


class Client(ipytaskfarm.ipyparallel.Client):
    """The suite's clients name their profile, which is the farm's name here, and a ZeroMQ context."""

    def __new__(cls, *args, **options):
        """Stay constructible after a test has replaced `__new__` for a while."""
        return super().__new__(cls)

    def __init__(self, *args, context=None, **options):
        super().__init__(*args, **options)
''',
    "client/_joblib": """
from ipytaskfarm.adapters.ipyparallel.joblib_views import ViewBackend as IPythonParallelBackend
""",
    "tests/__init__": '''
"""The cluster of the suite: one farm per test file."""

import time

from ipytaskfarm import Farm

launchers = []
_farms = []


class Started:
    def poll(self):
        return None


def setup():
    _farms.append(Farm(1, "iptest"))


def add_engines(n=1, profile="iptest", total=False):
    with _farms[-1].multiengine_client() as mec:
        wanted = max(n, len(mec)) if total else len(mec) + n
        more = wanted - len(mec)
        if more:
            mec.add_engines(more)
        # An engine that a test has killed is replaced: the next test begins when the replacement is there.
        while sum(e.state in ("idle", "busy") for e in mec.engines()) < max(wanted, _farms[-1].state.wanted):
            time.sleep(0.05)
    return [Started() for _ in range(more)]


def teardown():
    _farms.pop().stop(drain=0)
''',
}
"""Module -> its text.  The suite imports these names."""


def prepare(source: Path, folder: Path) -> list[str]:
    """Copy ipyparallel's tests, with modules that stand for its own; return the files to run."""
    package = folder / "ipyparallel"
    tests = source if source.name == "tests" else source / "ipyparallel" / "tests"
    shutil.copytree(tests, package / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in MODULES.items():
        path = package / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.lstrip("\n"), encoding="utf-8")
    # An engine that the test before has killed is replaced: without this it came back while a test counted engines.
    file = package / "tests" / "clienttest.py"
    given = "self.engines = []"
    text = file.read_text(encoding="utf-8")
    assert given in text, f"{given!r} is not in {file.name}: where do its tests begin?"
    file.write_text(text.replace(given, f"add_engines(0); {given}"), encoding="utf-8")
    return [f"ipyparallel/tests/{name}" for name in FILES]


_TRACKERS = "ZeroMQ's trackers: values are copied before a call returns, so there is nothing to track"
_PUBLISH = "``publish_data`` of ipyparallel's engines: a task sends messages, and reports its progress"
_OWN_PARTS = "ipyparallel's own session, sockets and caches"

EXPECTED = {
    "::test_apply_tracked": _TRACKERS,
    "::test_push_tracked": _TRACKERS,
    "TestView::test_scatter_tracked": _TRACKERS,
    "::test_wait_for_send": _TRACKERS,
    "::test_data_pub": _PUBLISH,
    "::test_data_pub_single": _PUBLISH,
    "::test_await_data": _PUBLISH,
    "::test_use_cloudpickle": "functions always bring the values that they use, and names on the engines have priority",
    "::test_curve": _OWN_PARTS,
    "::test_ids_list": _OWN_PARTS,
    "::test_purge_everything": _OWN_PARTS,
    "::test_warning_on_hostname_match": _OWN_PARTS,
    "::test_local_ip_true_doesnt_trigger_warning": _OWN_PARTS,
    "::test_default_backend": "replaces a class of the package by a mock",
    "::test_resubmit_inflight": "a task that has not ended is not submitted a second time",
    "::test_become_dask": "dask's collections run on the farm itself: ``dask.config.set(scheduler=tc.dask_get)``",
    "::test_retries": "a retry may use the engine that failed if there is no other; ipyparallel's waits for ever",
}
"""A part of a test's name -> why it cannot pass."""

TIMED = {
    "::test_imap_unordered": "a fresh engine imports the test's module, which takes longer than the sleeps of the test",
    "TestView::test_z_crash_mux": "it looks for a lost engine's id, which its replacement may have by then",
}
"""A part of a test's name -> why it passes or fails with the speed of the machine."""
