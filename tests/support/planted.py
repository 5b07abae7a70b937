"""Examples for the house rules, see `tests.unit.test_architecture`: files that break one, and files that break none."""

from __future__ import annotations

LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 60
PLANTED = {
    "core reads the clock": ("core/scheduler/queue.py", "import time", "core imports time", "purity is cheap"),
    "core reads the clock by name": (
        "core/scheduler/queue.py",
        "from time import monotonic",
        "core imports time.monotonic",
        "",
    ),
    "core in a function": ("core/scheduler/queue.py", "def f():\n    import random", "core imports random", ""),
    "core opens a file": ("core/scheduler/queue.py", "x = open('a')", "core calls open()", ""),
    "core asks the date": ("core/a.py", "from datetime import datetime\nx = datetime.now()", "datetime.now()", ""),
    "core remembers": ("core/a.py", "_SEEN: set[int] = set()", "a module of core keeps state", "throw away"),
    "core remembers in a dict": ("core/a.py", "_SEEN = {}", "a module of core keeps state", ""),
    "core imports storage": (
        "core/scheduler/state.py",
        "from ...storage import store",
        "core imports ipytaskfarm.storage.store",
        "",
    ),
    "core imports a policy": ("core/scheduler/state.py", "from ipytaskfarm.policies import FIFO", "core imports", ""),
    "storage imports a policy": (
        "storage/store.py",
        "from .. import policies",
        "storage imports ipytaskfarm.policies",
        "",
    ),
    "engine imports client": ("engine/a.py", "from ..client import task", "engine imports", "different processes"),
    "agent imports engine": ("agent/a.py", "import ipytaskfarm.engine.zygote", "agent imports", ""),
    "client imports the front door": ("client/a.py", "from ipytaskfarm import Farm", "name the part", ""),
    "by the package's name": ("agent/a.py", "import ipytaskfarm\nipytaskfarm.client.Task", "agent imports", ""),
    "for type checkers only": (
        "controller/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..agent import x",
        "controller imports ipytaskfarm.agent.x",
        "",
    ),
    "launcher imports agent": ("launchers/local.py", "from ..agent.main import main", "launchers imports", ""),
    "an unknown part": ("tools/a.py", "", "'tools' is not a part", ""),
    "zmq elsewhere": (
        "client/io.py",
        "import zmq.asyncio",
        "only transport/, engine/lane.py, engine/kernel.py may",
        "silently",
    ),
    "sqlite3 elsewhere": (
        "controller/a.py",
        "import sqlite3",
        "only storage/store.py, storage/opening.py, storage/backup.py, storage/task_tables.py, "
        "storage/result_cache.py may",
        "one writer",
    ),
    "pickle elsewhere": ("client/a.py", "from pickle import dumps", "only serialization/ may", ""),
    "dill elsewhere": ("engine/a.py", "import dill", "only serialization/ may", ""),
    "subprocess elsewhere": ("controller/loop.py", "import subprocess", "engine/shell_commands.py may", "reap"),
    "distributed elsewhere": (
        "deployment/farm.py",
        "def f():\n    import distributed",
        "only launchers/dask/ may",
        "extra",
    ),
    "ipykernel elsewhere": ("agent/a.py", "from ipykernel.kernelapp import IPKernelApp", "only engine/ may", ""),
    "IPython elsewhere": ("client/a.py", "def f():\n    from IPython import get_ipython", "only engine/, jupyter/", ""),
    "IPython by name": ("client/a.py", "import importlib\nimportlib.import_module('IPython')", "engine/, jupyter/", ""),
    "fork elsewhere": (
        "agent/a.py",
        "import os\nos.fork()",
        "uses os.fork: only engine/zygote.py, launchers/local.py",
        "locks",
    ),
    "fork by name": ("agent/a.py", "from os import fork", "imports os.fork", "locks"),
    "controller unpickles": (
        "controller/a.py",
        "from ..serialization.pack import unpack",
        "reaches serialization",
        "poisoned",
    ),
    "a long function": ("agent/a.py", LONG_FUNCTION, "f has 61 lines", "does two things"),
    "a long file": ("agent/a.py", "\n" * 601, "601 lines, more than 600", "two subjects"),
    "a method from elsewhere": (
        "client/a.py",
        "from . import a\ndef f(self): ...\nclass C:\n    f = a.f",
        "C takes ipytaskfarm.client.a.f as a method",
        "signature",
    ),
    "a long public class": ("client/taskclient.py", "\n" * 901, "901 lines, more than 900", "two subjects"),
    "utils": ("client/utils.py", "", "a file or folder named so", "says nothing"),
    "bare except": ("client/a.py", "try:\n    pass\nexcept:\n    pass", "bare except", "KeyboardInterrupt"),
}
"""Name -> (file, its text, a part of what is found, a part of the reason)."""

ALLOWED = {
    "transport imports core": ("transport/wire.py", "import zmq\nfrom ..core.messages import Hello"),
    "everybody may know where it is": ("launchers/a.py", "import ipytaskfarm\nipytaskfarm.__file__"),
    "everybody may know the version": ("controller/a.py", "from ..version import __version__"),
    "the lane": ("engine/lane.py", "import zmq\nfrom ..system.flight_recorder import Recorder"),
    "the engine is a kernel": ("engine/kernel.py", "import IPython\nfrom ipykernel.kernelapp import IPKernelApp"),
    "Dask's launcher": ("launchers/dask/plugin.py", "from distributed import WorkerPlugin"),
    "the zygote forks": ("engine/zygote.py", "import os\nos.fork()"),
    "hooks around a fork": ("client/a.py", "import os\nos.register_at_fork(after_in_child=print)"),
    "the agent starts processes": ("agent/a.py", "import subprocess"),
    "the client unpickles": ("client/a.py", "from ..serialization.pack import unpack"),
    "the controller reads the store": ("controller/a.py", "from ..storage.store import Store"),
    "the front door": ("__init__.py", "from .client import Task\nfrom .deployment.farm import Farm"),
    "a public class": ("client/taskclient.py", "\n" * 900),
    "a function as a field's default": ("client/a.py", "from .a import f\ndef f(): ...\nclass C:\n    g: object = f"),
    "a screenful": ("agent/a.py", LONG_FUNCTION.removesuffix("    x = 1\n")),
    "an empty list that stays so": ("core/a.py", "_NONE: Final[list[int]] = []"),
    "a word that only begins so": ("client/a.py", "import pickletools, subprocess32"),
}
