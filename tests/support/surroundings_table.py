"""The checks for each row of the table in docs/surroundings.md: code that reads a setting, and code that changes it."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple


class Check(NamedTuple):
    """Code that reads a setting into `seen`, and code that changes the setting."""

    look: str
    change: str
    found: Any = ...
    """The value that the first task of an engine finds, if it is the same everywhere."""


PUT_BACK: dict[str, list[Check]] = {
    "working folder": [
        Check("import os; seen = os.getcwd()", "import os; os.chdir('/')"),
        Check("import os; seen = os.getcwd()", "import posix; posix.chdir('/tmp')"),
        Check("import os; seen = os.getcwd()", "import os; os.fchdir(os.open('/', os.O_RDONLY))"),
        Check("import os; seen = os.getcwd()", "import contextlib; contextlib.chdir('/').__enter__()"),
    ],
    "environment variables": [
        Check("import os; seen = os.environ.get('MINE')", "import os; os.environ['MINE'] = '1'", None),
        Check("import os; seen = os.environ.get('HOME')", "import os; del os.environ['HOME']"),
        Check("import os; seen = sorted(os.environ)", "import os; os.environ.clear()"),
        Check("import os; seen = sorted(os.environ)", "import os; os.environ = {'ONLY': '1'}"),
        Check(
            "import subprocess; seen = subprocess.run('echo $HIDDEN', shell=True, capture_output=True).stdout",
            "import os; os.putenv('HIDDEN', 'x')",
            b"\n",
        ),
        Check(
            "import subprocess; seen = subprocess.run('echo $HOME', shell=True, capture_output=True).stdout",
            "import os; os.unsetenv('HOME')",
        ),
    ],
    "time zone": [
        Check(
            "import time; seen = time.tzname, time.localtime(0).tm_hour",
            "import os, time; os.environ['TZ'] = 'XYZ-5'; time.tzset()",
        )
    ],
    "umask": [
        Check(f"import os; seen = os.umask(0o{mask:o}); os.umask(seen)", f"import os; os.umask(0o{mask:o})")
        for mask in (0, 0o077, 0o777)
    ],
    "`sys.argv`": [
        Check("import sys; seen = list(sys.argv)", "import sys; sys.argv.append('--x')", [""]),
        Check("import sys; seen = list(sys.argv)", "import sys; sys.argv = ['prog', '--help']", [""]),
        Check(
            "import argparse; seen = vars(argparse.ArgumentParser().parse_args())", "import sys; sys.argv += ['-v']", {}
        ),
    ],
    "`sys.modules`": [
        Check(
            "import sys; seen = [name in sys.modules for name in ('re', 'warnings')]", "import sys; sys.modules.clear()"
        ),
        Check(
            "import subprocess; seen = subprocess.run('echo x', shell=True, capture_output=True).stdout",
            "import sys; gone = [sys.modules.pop(name) for name in list(sys.modules) if name != '__main__']",
        ),
    ],
    "`sys.path`": [
        Check("import sys; seen = list(sys.path)", "import sys; sys.path.insert(0, '/nowhere')"),
        Check("import sys; seen = list(sys.path)", "import sys; sys.path = []"),
        Check("import sys; seen = list(sys.path)", "import site; site.addsitedir('/tmp')"),
    ],
    "`sys.meta_path`, `sys.path_hooks`": [
        Check("import sys; seen = len(sys.meta_path)", "import sys; sys.meta_path.insert(0, type('F', (), {})())"),
        Check("import sys; seen = len(sys.meta_path)", "import sys; sys.meta_path.clear()"),
        Check("import sys; seen = len(sys.path_hooks)", "import sys; sys.path_hooks.append(lambda path: None)"),
    ],
    "locale": [
        Check(
            "import locale; seen = locale.setlocale(locale.LC_ALL)",
            "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8')",
        )
    ],
    "warnings filters": [
        Check("import warnings; seen = len(warnings.filters)", "import warnings; warnings.simplefilter('error')"),
        Check("import warnings; seen = len(warnings.filters)", "import warnings; warnings.resetwarnings()"),
        Check("import warnings; seen = len(warnings.filters)", "import warnings; warnings.filters = []"),
        Check(
            "import warnings; seen = warnings.showwarning.__name__",
            "import warnings; warnings.catch_warnings(record=True).__enter__()",
        ),
    ],
    "recursion limit": [
        Check("import sys; seen = sys.getrecursionlimit()", "import sys; sys.setrecursionlimit(5000)", 1000)
    ],
    "digits of `int`": [
        Check("import sys; seen = sys.get_int_max_str_digits()", "import sys; sys.set_int_max_str_digits(0)", 4300)
    ],
    "thread switch interval": [
        Check("import sys; seen = sys.getswitchinterval()", "import sys; sys.setswitchinterval(1)", 0.005)
    ],
    "resource limits": [
        Check(
            f"import resource; seen = resource.getrlimit(resource.{name})",
            f"import resource; resource.setrlimit(resource.{name}, (100, resource.getrlimit(resource.{name})[1]))",
        )
        for name in ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_FSIZE")
    ],
    "niceness, cores, scheduling": [
        Check(
            "import os; seen = len(os.sched_getaffinity(0))",
            "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
        ),
        Check(
            "import os; seen = len(os.sched_getaffinity(0))",
            "import psutil; psutil.Process().cpu_affinity([min(psutil.Process().cpu_affinity())])",
        ),
    ],
    "signal handlers": [
        Check(
            f"import signal; seen = str(signal.getsignal(signal.{name}))",
            f"import signal; signal.signal(signal.{name}, lambda *a: None)",
        )
        for name in ("SIGUSR1", "SIGTERM", "SIGPIPE", "SIGCHLD", "SIGXCPU", "SIGINT")
    ],
    "alarms and timers": [
        Check("import signal; seen = signal.alarm(0)", "import signal; signal.alarm(1)", 0),
        *(
            Check(
                f"import signal; seen = signal.getitimer(signal.{name})",
                f"import signal; signal.setitimer(signal.{name}, 0.05, 0.05)",
                (0.0, 0.0),
            )
            for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")
        ),
        Check("seen = 1", "import faulthandler; faulthandler.dump_traceback_later(0.05, exit=True)", 1),
    ],
    "blocked signals": [
        Check(
            "import signal; seen = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))",
            "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
            "signal.raise_signal(signal.SIGUSR1)",
            [],
        )
    ],
    "faulthandler": [
        Check(
            "import faulthandler; seen = faulthandler.is_enabled()", "import faulthandler; faulthandler.disable()", True
        )
    ],
    "garbage collection": [
        Check("import gc; seen = gc.isenabled(), gc.get_threshold()[0]", "import gc; gc.disable()"),
        Check("import gc; seen = gc.isenabled(), gc.get_threshold()[0]", "import gc; gc.set_threshold(3)"),
        Check("import gc; seen = gc.get_debug()", "import gc; gc.set_debug(gc.DEBUG_SAVEALL)", 0),
        Check("import gc; seen = len(gc.callbacks)", "import gc; gc.callbacks.append(lambda *a: None)"),
    ],
    "socket time-out": [
        Check("import socket; seen = socket.getdefaulttimeout()", "import socket; socket.setdefaulttimeout(1)", None)
    ],
    "decimal context": [
        Check("import decimal; seen = decimal.getcontext().prec", "import decimal; decimal.getcontext().prec = 5", 28),
        Check(
            "import decimal; seen = decimal.getcontext().prec",
            "import decimal; decimal.setcontext(decimal.Context(prec=9))",
            28,
        ),
        Check("import decimal; seen = decimal.Context().prec", "import decimal; decimal.DefaultContext.prec = 5", 28),
    ],
    "numpy's error state and print options": [
        Check("import numpy; seen = numpy.geterr()", "import numpy; numpy.seterr(all='raise')"),
        Check(
            "import numpy; seen = numpy.get_printoptions()['precision']",
            "import numpy; numpy.set_printoptions(precision=2)",
            8,
        ),
    ],
    "context variables": [
        Check(
            "import builtins, contextvars, types, sys\n"
            "holder = sys.modules.setdefault('holder', types.ModuleType('holder'))\n"
            "var = vars(holder).setdefault('var', contextvars.ContextVar('var', default=0))\n"
            "seen = var.get()",
            "import sys; sys.modules['holder'].var.set(5)",
            0,
        )
    ],
    "builtins": [
        Check("seen = print.__name__", "import builtins; builtins.print = len", "print"),
        Check("import builtins; seen = hasattr(builtins, 'mine')", "import builtins; builtins.mine = 1", False),
        Check("import builtins; seen = hasattr(builtins, 'sum')", "import builtins; del builtins.sum", True),
    ],
    "standard input": [
        Check(
            "import sys; seen = sys.stdin.read(), sys.stdin.readline()",
            "import sys, io; sys.stdin = io.StringIO('x')",
            ("", ""),
        ),
        Check("import os; seen = os.read(0, 1)", "import sys; sys.stdin = None", b""),
        Check("import sys; seen = sys.stdin.read()", "import sys; sys.stdin.close()", ""),
    ],
    "descriptors 0, 1 and 2": [
        Check(
            "import subprocess; seen = subprocess.run(['cat'], capture_output=True).stdout",
            "import os; os.close(0)",
            b"",
        ),
        Check(
            "import os; seen = [os.fstat(n).st_ino for n in (0, 1, 2)]",
            "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
        ),
        Check("import os; seen = [os.fstat(n).st_ino for n in (0, 1, 2)]", "import os; os.closerange(0, 3)"),
    ],
    "multiprocessing's start method": [
        Check(
            "import multiprocessing; seen = multiprocessing.get_start_method(allow_none=True)",
            f"import multiprocessing; multiprocessing.set_start_method({name!r})",
            None,
        )
        for name in ("spawn", "fork")
    ],
    "multiprocessing's fork server": [
        Check(
            "import multiprocessing, os\nwith multiprocessing.get_context('forkserver').Pool(1) as pool:\n"
            '    loaded = pool.apply(eval, (\'"colorsys" in __import__("sys").modules\',))\n'
            "    seen = pool.apply(os.getenv, ('MINE',)), loaded",
            "import os, multiprocessing\nos.environ['MINE'] = '1'\n"
            "multiprocessing.get_context('forkserver').set_forkserver_preload(['colorsys'])\n"
            "with multiprocessing.get_context('forkserver').Pool(1) as pool: pool.apply(os.getpid)",
            (None, False),
        )
    ],
    "warnings that were shown": [
        Check(
            "import io, sys, warnings\n"
            "usual, sys.stderr = sys.stderr, io.StringIO()\n"
            "warnings.warn('again')\n"
            "shown, sys.stderr = sys.stderr.getvalue(), usual\n"
            "seen = 'again' in shown",
            "pass",
            True,
        )
    ],
    "standard streams": [
        Check("import sys; seen = type(sys.stdout).__name__", "import sys, os; sys.stdout = open(os.devnull, 'w')"),
        Check("import sys; seen = type(sys.stderr).__name__", "import sys; sys.stderr = None"),
        Check("import sys; seen = type(sys.__stdout__).__name__", "import sys; sys.__stdout__ = None"),
    ],
    "hooks of `sys` and `threading`": [
        Check(
            f"import {module}; seen = {module}.{name}.__name__", f"import {module}; {module}.{name} = lambda *a: None"
        )
        for module, name in (
            ("sys", "excepthook"),
            ("sys", "unraisablehook"),
            ("sys", "breakpointhook"),
            ("threading", "excepthook"),
        )
    ],
    "tracing and profiling": [
        Check(
            f"import {module}; seen = {module}.get{name}()",
            f"import {module}; {module}.set{name}(lambda *a: None)",
            None,
        )
        for module in ("sys", "threading")
        for name in ("trace", "profile")
    ],
    "tracemalloc": [
        Check("import tracemalloc; seen = tracemalloc.is_tracing()", "import tracemalloc; tracemalloc.start()", False)
    ],
    "stack size of new threads": [
        Check("import threading; seen = threading.stack_size()", "import threading; threading.stack_size(1 << 20)", 0)
    ],
    "root logger": [
        Check("import logging; seen = len(logging.root.handlers), logging.root.level", change)
        for change in (
            "import logging; logging.basicConfig(level=10)",
            "import logging; logging.getLogger().setLevel(50)",
            "import logging.config; logging.config.dictConfig({'version': 1, 'root': {'level': 'DEBUG'}})",
        )
    ]
    + [Check("import logging; seen = logging.root.manager.disable", "import logging; logging.disable(50)", 0)],
    "event loop": [
        Check(
            "import asyncio\nasync def one(): return 1\nseen = asyncio.run(one())",
            "import asyncio; asyncio.set_event_loop(asyncio.new_event_loop())",
            1,
        ),
        *[
            Check(
                "import asyncio, warnings\nasync def one(): return 1\n"
                "with warnings.catch_warnings():\n"
                "    warnings.simplefilter('ignore')\n"
                "    seen = asyncio.get_event_loop().run_until_complete(one())",
                "import asyncio\nasync def one(): return 1\nasyncio.run(one())",
                1,
            )
            for _ in range(sys.version_info < (3, 14))  # which makes no loop on request
        ],
        Check(
            "import asyncio; seen = type(asyncio.get_event_loop_policy()).__name__",
            "import asyncio; asyncio.set_event_loop_policy(type('P', (asyncio.DefaultEventLoopPolicy,), {})())",
        ),
    ],
    "`tempfile.tempdir`": [
        Check("import tempfile; seen = tempfile.tempdir", "import tempfile; tempfile.tempdir = '/'")
    ],
}
"""By row: more than one check where there is more than one way."""

LEFT: dict[str, Check] = {
    "`gc.freeze`": Check("import gc; seen = gc.get_freeze_count() > 0", "import gc; gc.unfreeze()"),
    "IPython's settings": Check(
        "seen = get_ipython().ast_node_interactivity == 'all'", "get_ipython().ast_node_interactivity = 'all'"
    ),
    "random numbers": Check(
        "import random; seen = random.getstate()[1][:3] == random.Random(1).getstate()[1][:3]",
        "import random; random.seed(1)",
    ),
    "imported modules": Check("import sys; seen = 'sched' in sys.modules", "import sched"),
    "other loggers": Check(
        "import logging; seen = logging.getLogger('x').level", "import logging; logging.getLogger('x').setLevel(5)"
    ),
    "threads": Check(
        "import threading; seen = any(t.name == 'mine' for t in threading.enumerate())",
        "import threading; threading.Thread(target=threading.Event().wait, name='mine', daemon=True).start()",
    ),
    "child processes and pools that a name holds": Check(
        "seen = 'kept' in globals() and kept.poll() is None",
        "import subprocess; kept = subprocess.Popen(['cat'], stdin=subprocess.PIPE)",
    ),
    "open files": Check("seen = 'held' in globals() and not held.closed", "held = open('/dev/null')"),
    "`atexit`, at-fork and audit hooks, codecs": Check(
        "import codecs\ntry: seen = bool(codecs.lookup('mine-codec'))\nexcept LookupError: seen = False",
        "import codecs; codecs.register(lambda name: codecs.lookup('utf-8') if name.startswith('mine') else None)",
    ),
}
RECYCLED: dict[str, str] = {
    "lowered hard limits": "import resource; low = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (low, low))",
    "user, groups, root folder": "import os; os.setresgid(12345, 12345, 12345)",
}
