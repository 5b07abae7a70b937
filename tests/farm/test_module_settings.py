"""On a real farm: what modules of the project set while they are imported holds for all tasks that use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ipytaskfarm import Farm

MODULES = {
    "recursion": ("import sys; sys.setrecursionlimit(5000)", "sys.getrecursionlimit()"),
    "logs": (
        "import logging; logging.basicConfig(level=logging.INFO)",
        "(logging.root.level, len(logging.root.handlers))",
    ),
    "no_logs": ("import logging; logging.disable(logging.ERROR)", "logging.root.manager.disable"),
    "filters": (
        "import warnings; warnings.filterwarnings('error', category=UserWarning)",
        "any(each[0] == 'error' and each[2] is UserWarning for each in warnings.filters)",
    ),
    "arrays": (
        "import numpy as np; np.seterr(all='raise'); np.set_printoptions(precision=2)",
        "(np.geterr()['divide'], str(np.array([1.2345])))",
    ),
    "frames": ("import pandas as pd; pd.set_option('display.precision', 2)", "pd.get_option('display.precision')"),
    "decimals": ("import decimal; decimal.getcontext().prec = 5", "str(decimal.Decimal(1) / 3)"),
    "modes": ("import os; os.umask(0o027)", "(os.umask(0o027), os.umask(0o027))"),
    "words": ("import locale; locale.setlocale(locale.LC_TIME, 'C.UTF-8')", "locale.setlocale(locale.LC_TIME)"),
    "folder": ("import os; os.chdir(os.path.dirname(__file__) + '/below')", "os.path.basename(os.getcwd())"),
    "paths": ("import sys; sys.path.insert(0, '/nowhere')", "sys.path[0]"),
    "rubbish": (
        "import gc, socket; gc.disable(); socket.setdefaulttimeout(3)",
        "(gc.isenabled(), socket.getdefaulttimeout())",
    ),
    "handlers": ("import signal; signal.signal(signal.SIGUSR1, print)", "signal.getsignal(signal.SIGUSR1) is print"),
    "limits": (
        "import resource as r; r.setrlimit(r.RLIMIT_CORE, (0, r.getrlimit(r.RLIMIT_CORE)[1]))",
        "r.getrlimit(r.RLIMIT_CORE)[0]",
    ),
    "hooks": (
        "import sys; sys.excepthook = print; sys.tracebacklimit = 7",
        "(sys.excepthook is print, sys.tracebacklimit)",
    ),
    "texts": ("import gettext; gettext.install('none')", "_('text')"),
    "starts": (
        "import multiprocessing; multiprocessing.set_start_method('spawn')",
        "multiprocessing.get_start_method()",
    ),
    "variable": ("import contextvars; v = contextvars.ContextVar('v'); v.set(3)", "v.get(None)"),
}
SCRIPT = """
import importlib, sys, warnings
from ipytaskfarm import Task, TaskClient
def limit_of_others(_):
    import decimal, gc, logging, numpy, os, socket, sys
    os.umask(before := os.umask(0))
    return (sys.getrecursionlimit(), len(logging.root.handlers), decimal.getcontext().prec, numpy.geterr()["divide"],
            oct(before), os.getcwd(), sys.path[0], gc.isenabled(), socket.getdefaulttimeout(), sys.excepthook is print)
def late(number):
    if number:
        import late_settings
    import decimal, sys
    return sys.getrecursionlimit(), decimal.getcontext().prec
if __name__ == "__main__":
    functions = {name: importlib.import_module(name).look for name in NAMES}
    warnings.simplefilter("ignore")
    with TaskClient(WHERE) as tc:
        tc.progress = False
        first = repr(tc.submit(limit_of_others, 0).result())
        for name, function in functions.items():
            tasks = [tc.submit(function, number) for number in range(3)]
            found = {repr(task.result()) for task in tasks} | set(map(repr, tc.map(function, range(4), chunksize=4)))
            others = {repr(tc.submit(limit_of_others, 0).result()), *map(repr, tc.map(limit_of_others, range(2)))}
            again = repr(tc.submit(function, 0).result())
            print(name, *sorted(found | {again}), "" if others == {first} else f"others found {others}")
        print(*(tc.submit(late, number).result() for number in (0, 1, 1)), *tc.map(late, [0, 1, 1], chunksize=3))
        print(tc.submit(limit_of_others, 0).result() == tc.submit(limit_of_others, 0).result())
"""


def test_settings_of_a_module_hold_for_all_tasks_that_use_it(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name, (body, look) in MODULES.items():
        (tmp_path / f"{name}.py").write_text(f"{body}\ndef look(number): return {look}\n")
    (tmp_path / "late_settings.py").write_text(
        "import decimal, sys\nsys.setrecursionlimit(4000)\ndecimal.getcontext().prec = 9\n"
    )
    (tmp_path / "script.py").write_text(f"WHERE, NAMES = {str(farm.connection_file)!r}, {list(MODULES)}\n{SCRIPT}")
    said = run(tmp_path, "script.py").splitlines()
    plain = {
        name: run(tmp_path, "-c", f"import {name}; {name}.look(0); print(repr({name}.look(0)))") for name in MODULES
    }
    assert said[:-2] == [f"{name} {plain[name].strip()} " for name in MODULES]
    assert said[-2].endswith("(4000, 9) (4000, 9)")
    assert said[-1] == "True"


def test_programs_set_up_logging_one_after_the_other(farm: Farm, tmp_path: Path) -> None:
    text = "import logging\nlogging.basicConfig(level=LEVEL)\ndef look(number): return logging.root.level\n"
    (tmp_path / "one.py").write_text(text.replace("LEVEL", "11"))
    (tmp_path / "other.py").write_text(text.replace("LEVEL", "12"))
    (tmp_path / "script.py").write_text(
        "import logging, sys, one\nlogging.root.handlers.clear()\nimport other\nfrom ipytaskfarm import TaskClient\n"
        f"with TaskClient({str(farm.connection_file)!r}) as tc:\n"
        "    print(*(tc.submit(each.look, 0).result() for each in (one, other, one, other)))\n"
    )
    assert run(tmp_path, "script.py") == "11 12 11 12\n"
    edited = (tmp_path / "one.py").read_text().replace("11", "13")
    (tmp_path / "one.py").write_text(f"{edited}# a new version\n")
    assert run(tmp_path, "script.py") == "13 12 13 12\n"


def run(folder: Path, *arguments: str) -> str:
    ended = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
