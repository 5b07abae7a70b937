"""The settings of the process that belong to a module of the user that makes them while it is imported.

Not among them: the standard streams and the arguments, which belong to the task; timers and the signals with which the
farm ends an engine; what cannot be undone.
"""

from __future__ import annotations

import builtins
import gc
import locale
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from ..serialization.import_settings import ProcessSetting, merge_lists, merge_names
from .change_hooks import usual
from .interpreter import Builtins, Decimals, StartMethod
from .surroundings import RESOURCES, SIGNALS, folder_now

_ABSENT = object()
_ATTRIBUTES = (
    (sys, ("excepthook", "unraisablehook", "tracebacklimit", "dont_write_bytecode", "pycache_prefix")),
    (threading, ("excepthook",)),
    (warnings, ("showwarning", "formatwarning", "_showwarnmsg_impl")),
    (logging, ("lastResort", "raiseExceptions", "_warnings_showwarning")),
    (tempfile, ("tempdir",)),
    (socket, ("socket",)),
)


def settings_of_imports() -> dict[str, ProcessSetting]:
    """Return the settings by name. To look at all of them takes about 40 µs.

    What calls of watched functions change is set by such calls, so that the baseline restores it.
    """
    chosen, decimals = StartMethod(), Decimals()
    found = {
        "working folder": ProcessSetting(folder_now, os.chdir),
        "umask": ProcessSetting(_umask, os.umask),
        "locale": ProcessSetting(
            lambda: usual["setlocale"](locale.LC_ALL, None), partial(locale.setlocale, locale.LC_ALL)
        ),
        "recursion limit": ProcessSetting(sys.getrecursionlimit, sys.setrecursionlimit),
        "switch interval": ProcessSetting(sys.getswitchinterval, sys.setswitchinterval),
        "gc": ProcessSetting(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        "gc threshold": ProcessSetting(gc.get_threshold, lambda numbers: gc.set_threshold(*numbers)),
        "socket time-out": ProcessSetting(socket.getdefaulttimeout, socket.setdefaulttimeout),
        "log level": ProcessSetting(lambda: logging.root.level, logging.root.setLevel),
        "log disabled": ProcessSetting(lambda: logging.root.manager.disable, logging.disable),
        "start method": ProcessSetting(chosen.look, chosen.put),
        "decimal default": ProcessSetting(decimals.look, decimals.put),
        "builtins": ProcessSetting(lambda: dict(vars(builtins)), Builtins.put, merge_names),
        "sys.path": _listed(lambda: sys.path),
        "warnings filters": _listed(lambda: warnings.filters, vars(warnings)["_filters_mutated"]),
        "log handlers": _listed(lambda: logging.root.handlers),
        "log filters": _listed(lambda: logging.root.filters),
    }
    if hasattr(sys, "get_int_max_str_digits"):
        found["digits of int"] = ProcessSetting(sys.get_int_max_str_digits, sys.set_int_max_str_digits)
    for module, names in _ATTRIBUTES:
        found |= {f"{module.__name__}.{name}": _attribute(module, name) for name in names}
    for number in SIGNALS:
        if number not in (signal.SIGINT, signal.SIGTERM):
            found[f"signal {number}"] = ProcessSetting(
                partial(signal.getsignal, number), partial(signal.signal, number)
            )
    for number in RESOURCES:
        found[f"limit {number}"] = ProcessSetting(
            partial(resource.getrlimit, number), partial(resource.setrlimit, number)
        )
    return found


def _umask() -> int:
    present: int = usual["umask"](0o077)
    usual["umask"](present)
    return present


def _listed(find: Callable[[], Any], tell: Callable[[], None] = lambda: None) -> ProcessSetting:
    def put(items: list[Any]) -> None:
        find()[:] = items
        tell()

    return ProcessSetting(lambda: list(find()), put, merge_lists)


def _attribute(module: Any, name: str) -> ProcessSetting:
    def put(value: Any) -> None:
        if value is _ABSENT:
            delattr(module, name)
        else:
            setattr(module, name, value)

    return ProcessSetting(lambda: vars(module).get(name, _ABSENT), put)
