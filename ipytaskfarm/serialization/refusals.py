"""Finds the part of an object that cannot be pickled, and says what to do."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .classes import class_attributes
from .function_parts import closure_of
from .global_names import stored_globals
from .module_origin import Travel, travel
from .pickler import find_named, reduced_by_pickle, used_globals

LOOKED_AT_MAX = 10_000
PATH_CHARACTERS_MAX = 500
"""A longer path is shortened in messages; that of an error of recursion says no more than that it is long."""
_MAKE = "make it where it is used, inside the task"
_OPEN = "open the file inside the task"
_CONNECT = "connect inside the task"
_START = "start it inside the task"
_LIST = "make a list of it"
_ITERATOR = "make it inside the task"
_UNLOCKED = "send its value, or make it with `lock=False` and send a `multiprocessing.Manager().Lock()` too"
_SHARED = "send one that `multiprocessing.Manager()` makes, such as its `Lock()` or `Queue()`"
_FIELDS = "send what is needed of it, such as a tuple of it"
_OWN = "ipytaskfarm."
_CLIENT = "inside a task use `current_task()`"
_ARGUMENT = "give it as an argument: there it stands for its task's result"
_REMEDIES = {
    "_io._IOBase": _OPEN,
    "tempfile._TemporaryFileWrapper": _OPEN,
    "mmap.mmap": "map the file inside the task",
    "posix.ScandirIterator": _LIST,
    "posix.DirEntry": "send its `path`",
    "sqlite3.Row": "send `dict(row)`, or `tuple(row)`",
    "zipfile.ZipFile": _OPEN,
    "tarfile.TarFile": _OPEN,
    "shelve.Shelf": _OPEN,
    "dbm.dumb._Database": _OPEN,
    "h5py._hl.base.HLObject": _OPEN,
    "netCDF4._netCDF4.Dataset": _OPEN,
    "netCDF4._netCDF4.Variable": _OPEN,
    "rasterio._base.DatasetBase": _OPEN,
    "tables.file.File": _OPEN,
    "tables.node.Node": _OPEN,
    "pandas.io.pytables.HDFStore": _OPEN,
    "logging.FileHandler": "make the handler inside the task, or send its file's name",
    "_thread.lock": _MAKE,
    "_thread.RLock": _MAKE,
    "threading.Condition": _MAKE,
    "threading.Event": _MAKE,
    "threading.Semaphore": _MAKE,
    "threading.Barrier": _MAKE,
    "_thread._local": _MAKE,
    "multiprocessing.synchronize.SemLock": _SHARED,
    "multiprocessing.synchronize.Condition": _SHARED,
    "multiprocessing.synchronize.Event": _SHARED,
    "multiprocessing.synchronize.Barrier": _SHARED,
    "multiprocessing.sharedctypes.SynchronizedBase": _UNLOCKED,
    "multiprocessing.queues.Queue": _SHARED,
    "multiprocessing.queues.SimpleQueue": _SHARED,
    "multiprocessing.pool.Pool": _MAKE,
    "multiprocessing.managers.BaseManager": "send what it makes, such as its `dict()`; or start it inside the task",
    "multiprocessing.connection._ConnectionBase": _CONNECT,
    "queue.Queue": _MAKE,
    "_queue.SimpleQueue": _MAKE,
    "concurrent.futures._base.Executor": _MAKE,
    "concurrent.futures._base.Future": "send its result",
    "_asyncio.Future": "send its result",
    "_asyncio.Task": "send its result",
    "asyncio.events.AbstractEventLoop": "`asyncio.run` inside the task makes one of its own",
    "threading.Thread": _START,
    "multiprocessing.process.BaseProcess": _START,
    "subprocess.Popen": _START,
    "greenlet.greenlet": _START,
    "socket.socket": _CONNECT,
    "_socket.socket": _CONNECT,
    "_ssl._SSLContext": _CONNECT,
    "zmq.sugar.context.Context": _MAKE,
    "zmq.sugar.socket.Socket": _CONNECT,
    "selectors.BaseSelector": _MAKE,
    "select.poll": _MAKE,
    "select.epoll": _MAKE,
    "builtins.generator": _LIST,
    "itertools.cycle": _ITERATOR,
    "itertools.chain": _LIST,
    "itertools.islice": _LIST,
    "itertools.repeat": _ITERATOR,
    "builtins.async_generator": "make a list of what it gives",
    "builtins.coroutine": "await it, and send its result",
    "_csv.reader": _LIST,
    "_csv.writer": _OPEN,
    "builtins.module": "pull names instead",
    "builtins.frame": "send what is needed of it, such as its `f_locals`",
    "builtins.traceback": "send its text, which `traceback.format_tb` gives",
    "_contextvars.Token": "send the value that it restores",
    "_contextvars.Context": "send the values of its variables",
    "_hashlib.HASH": "send its digest, or hash inside the task",
    "_ctypes._Pointer": "send what it points to: an address means nothing elsewhere",
    "functools.KeyWrapper": "send the function, and wrap it inside the task",
    "cProfile.Profile": "send its statistics, such as `pstats.Stats(profile).stats`",
    "psutil.Process": "send its pid",
    "unittest.mock.NonCallableMock": "make it inside the task",
    "re.Match": "send what it found, such as its `groups()`",
    "hmac.HMAC": "send its digest, or hash inside the task",
    "zlib.Compress": _MAKE,
    "zlib.Decompress": _MAKE,
    "_bz2.BZ2Compressor": _MAKE,
    "_lzma.LZMACompressor": _MAKE,
    "ctypes.CDLL": "load the library inside the task",
    "sys.version_info": _FIELDS,
    "sys.flags": _FIELDS,
    "sys.float_info": _FIELDS,
    "sys.int_info": _FIELDS,
    "sys.hash_info": _FIELDS,
    "sys.thread_info": _FIELDS,
    "numpy.nditer": "make it inside the task, of the arrays",
    "numpy.broadcast": "make it inside the task, of the arrays",
    "pandas._libs.parsers.TextReader": "read the file inside the task",
    "numpy.flatiter": "send the array, and take its `flat` inside the task",
    "numpy.ufunc": "send the Python function, and make the ufunc inside the task",
    "IPython.core.interactiveshell.InteractiveShell": "call `get_ipython()` inside the task",
    "joblib.parallel.Parallel": _MAKE,
    f"{_OWN}client.taskclient.TaskClient": _CLIENT,
    f"{_OWN}client.multiengine.MultiEngineClient": f"{_CLIENT} or `get_engine()`",
    f"{_OWN}deployment.farm.Farm": _CLIENT,
    f"{_OWN}client.jobs.Job": _CLIENT,
    f"{_OWN}client.futures.TaskFuture": _ARGUMENT,
    f"{_OWN}serialization.references.Ref": _ARGUMENT,
    f"{_OWN}client.commands.PendingResult": "send its result",
}
"""Full name of a type, or of a base of it -> remedy. Names are used so that nothing must be imported."""
_BY_NAME = {"connection": _CONNECT, "cursor": _CONNECT, "socket": _CONNECT, "session": _CONNECT, "lock": _MAKE}
"""Last word of a type's name -> remedy, for libraries that are not listed."""
_PLAINER = "send something plainer, or give its class a __reduce__ method"


def remedy_of(obj: Any) -> str | None:
    """Return what to do about an object of a type that is known not to travel; None for other types."""
    for base in type(obj).__mro__:
        remedy = _REMEDIES.get(f"{base.__module__}.{base.__qualname__}")
        if remedy is not None:
            return remedy
    return None


class Culprit(NamedTuple):
    """The innermost part of an object that fails by itself."""

    path: str
    part: Any
    owner: Any
    """The object of an installed library that the part belongs to, without code of the user between them; or None."""
    definition: type | None = None
    """The class of the user, if the part is in one."""


def find_culprit(
    obj: Any, names: str | tuple[str, ...], fails: Callable[[Any], bool], steps_max: int = LOOKED_AT_MAX
) -> Culprit:
    """Return the innermost part that fails by itself of what cannot be pickled.

    names: the name of the object, or the names of its items. fails: returns whether an object cannot be pickled.
    steps_max: the most steps from a part to one of its parts, or back.
    """
    if isinstance(names, str):
        owner = obj if _is_of_library(obj) else None
        stack = [(Culprit(names, obj, owner, obj if isinstance(obj, type) else None), _children(obj))]
        if remedy_of(obj) is not None:
            return Culprit(names, obj, None)
    else:
        stack = [(Culprit("", obj, None), iter(zip(names, obj, strict=False)))]
    seen = {id(obj)}
    deepest: Culprit | None = None
    for _ in range(steps_max):
        (path, current, owner, definition), parts = stack[-1]
        for step, part in parts:
            if id(part) in seen or not fails(part):
                continue
            seen.add(id(part))
            if _is_of_user(part):
                holder = None
            else:
                holder = part if owner is None and _is_of_library(part) else owner
            found = Culprit(path + step, part, holder, definition)
            if isinstance(part, type) and _is_of_user(part):
                found = found._replace(definition=part)
            if remedy_of(part) is not None:
                return _alone(found)  # its parts do not matter: a thread is refused, not the lock inside it
            stack.append((found, _children(part)))
            break
        else:
            ended, _ = stack.pop()
            deepest = deepest or ended
            if not stack:
                break
            if not isinstance(current, _MADE_OF_PARTS):
                return _alone(ended)
            # It fails only for the sake of something that was met on the way to it, such as its class.
    return _alone(deepest or stack[-1][0])


_MADE_OF_PARTS = (types.FunctionType, types.MethodType, type, staticmethod, classmethod, property)
"""Types that pickle refuses for the sake of their parts alone."""


def _alone(found: Culprit) -> Culprit:
    return found._replace(owner=None) if found.owner is found.part else found


_TRANSPARENT = frozenset({"numpy", "pandas", "polars", "xarray", "scipy", _OWN.removesuffix(".")})
"""Libraries of containers, and this one: what is in their objects, the user put there."""


def _is_of_user(obj: Any) -> bool:
    kind = type(obj) if not isinstance(obj, types.FunctionType | type) else obj
    return travel(kind.__module__ or "") is not Travel.REFERENCE


def _is_of_library(obj: Any) -> bool:
    top = str(type(obj).__module__).partition(".")[0]
    return top not in sys.stdlib_module_names and top not in _TRANSPARENT and not _is_of_user(obj)


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield (text of the path's step, part) for all parts that would be pickled with the object, until code of its own
    class raises an error.
    """
    with contextlib.suppress(Exception):
        yield from _parts_of(obj)


def _parts_of(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, dict):
        for key, value in list(dict.items(obj)):  # a key "items" may hide the method
            yield f"[{_short(key)}]", value
            yield f" (the key {_short(key)})", key
    elif isinstance(obj, list | tuple):
        yield from ((f"[{index}]", value) for index, value in enumerate(obj))
    elif isinstance(obj, set | frozenset):
        yield from ((f" (its item {_short(value)})", value) for value in obj)
    elif isinstance(obj, types.FunctionType):
        yield from _function_children(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, functools.partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif isinstance(obj, property):
        yield from ((".fget", obj.fget), (".fset", obj.fset), (".fdel", obj.fdel))
    elif isinstance(obj, staticmethod | classmethod):
        yield "", obj.__func__
    elif isinstance(obj, type):
        if find_named(obj) is None:
            yield from ((f".{name}", value) for name, value in class_attributes(obj).items())
    else:
        yield from _instance_children(obj)


def _function_children(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if find_named(function) is not None:
        return
    name = function.__qualname__
    for variable, value in closure_of(function):
        yield f" (variable {variable!r} of the function around {name})", value
    assigned = stored_globals(function.__code__)
    for variable, value in used_globals(function)[0].items():
        yield f" (global {variable!r} {'assigned' if variable in assigned else 'used'} by {name})", value
    for index, value in enumerate(function.__defaults__ or ()):
        yield f" (default {index} of {name})", value
    for keyword, value in (function.__kwdefaults__ or {}).items():
        yield f" (default of {keyword!r} in {name})", value
    yield from ((f".{attribute}", value) for attribute, value in function.__dict__.items())


def _instance_children(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced: Any = reduced_by_pickle(obj)
    except Exception:
        return
    if isinstance(reduced, str):
        return
    state = reduced[2] if len(reduced) > 2 else None
    states = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    for part in states:
        if isinstance(part, dict):
            yield from ((f".{attribute}", value) for attribute, value in part.items())
        elif part is not None:
            yield " (its state)", part
    yield from ((f" (argument {index} of its class)", value) for index, value in enumerate(reduced[1]))
    for kind, items in zip(("[{}]", "[{}]"), reduced[3:5], strict=False):
        if items is not None:
            for index, value in enumerate(items):
                yield kind.format(index), value
    yield " (its class)", type(obj)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


_MADE_ON_FIRST_USE = re.compile(r"\(global '(\w+)' assigned by ([^()]+)\)$")


def _set_back(made: re.Match[str]) -> str:
    before = f"what it was before {made[2]} was called here, such as None"
    return f"set {made[1]} back to {before}, and each engine makes its own"


def type_name(obj: Any) -> str:
    """Return the name of an object's type as error messages show it, like ``_thread.lock`` or ``generator``."""
    kind = type(obj)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _with_article(obj: Any) -> str:
    name = type_name(obj)
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _made_elsewhere(owner: Any) -> str:
    """Return where the engine gets its own of what cannot be sent."""
    if isinstance(owner, type):
        return f"define {owner.__name__} in a module of yours that the function imports"
    return f"make the {type(owner).__name__} inside the task"


def explain(found: Culprit, error: BaseException) -> str:
    """Return the error message."""
    path, culprit, owner, _ = found
    path = path if len(path) <= PATH_CHARACTERS_MAX else f"{path[:200]}…{path[-100:]}"
    made = _MADE_ON_FIRST_USE.search(path)  # by a call here: on an engine the function makes another one
    if owner is not None:
        # What is inside does not help: nobody knows the locks of a database's engine.
        whole = f"the class {owner.__name__}" if isinstance(owner, type) else _with_article(owner)
        what = whole if type(owner) is type(culprit) else f"{_with_article(culprit)}, which belongs to {whole},"
        instead = _set_back(made) if made else _made_elsewhere(owner)
        return f"{path}: {what} cannot be pickled: {_or_in_module(instead, found)}"
    reason = str(error)
    remedy = remedy_of(culprit)
    if remedy is not None and str(type(culprit).__module__).startswith(_OWN):
        return f"{path}: a {type(culprit).__name__} cannot travel; {remedy}"
    known = remedy is not None or reason.startswith(("cannot pickle", "Can't pickle")) or not reason
    if remedy is None:
        words = re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", type(culprit).__name__)
        # Nobody writes methods for the classes of a library.
        remedy = _BY_NAME.get(words[-1].lower() if words else "", _PLAINER if _is_of_user(culprit) else _MAKE)
    if made:
        remedy = _set_back(made)
    what = f"{_with_article(culprit)} cannot be pickled"
    return f"{path}: {what}{'' if known else f' ({type(error).__name__}: {reason})'}: {_or_in_module(remedy, found)}"


def _or_in_module(remedy: str, found: Culprit) -> str:
    """Add what also helps with a global or a class: engines import modules, and make what is in them."""
    if not (remedy.endswith("inside the task") or remedy == _PLAINER):
        return remedy
    if found.definition is not None:
        other = f"define {found.definition.__name__} in a module of yours that the function imports"
        return other if found.owner is not None else f"{remedy}, or {other}"
    is_global = " (global '" in found.path
    return f"{remedy}, or make it in a module of yours that the function imports" if is_global else remedy
