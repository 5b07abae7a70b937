"""Reduces what the processes of a machine share through `multiprocessing`, so that engines share it too.

- Proxies of a `Manager` go with the manager's key, see `rebuild_proxies`.
- ``RawArray``, ``RawValue`` and ``Array(…, lock=False)`` go as the file in which they are, see `rebuild_arenas`.

`standard_values` adds these reducers to the pickler's. Locks of `multiprocessing` cannot be sent: they have no name by
which another process could open them.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from ..core.errors import UnpickleableException
from . import rebuild_arenas, rebuild_proxies
from .pickler import Pickler, Reduced, plain_reducer


def _of_manager_proxy(kind: type) -> Callable[[Pickler, Any], Reduced] | None:
    """Find the reducer for what `multiprocessing.Manager` returns: pickle leaves out the key that engines need."""
    return _reduce_proxy if _inherits(kind, "multiprocessing.managers", "BaseProxy") else None


def _inherits(kind: type, module: str, name: str) -> bool:
    """Return whether a type inherits from a class of a module, which need not be imported."""
    base = getattr(sys.modules.get(module), name, None)
    return base is not None and issubclass(kind, base)


def _reduce_proxy(pickler: Pickler, proxy: Any) -> Reduced:
    rebuild, args = proxy.__reduce__()[:2]
    if rebuild is not sys.modules["multiprocessing.managers"].RebuildProxy:
        return NotImplemented
    make, token, serializer, rest = args
    _hold(proxy)
    return rebuild_proxies.new_proxy, (make, token, serializer, {**rest, "authkey": bytes(proxy._authkey)})


_held: dict[int, Any] = {}
_HELD_MAX = 1_000


def _hold(shared: Any) -> None:
    """Keep what was sent: its owner frees what nobody uses, and a call that has not begun may have the only reference.

    The queue of a process pool keeps the arguments of a call until it has ended. The last 1,000 are kept here.
    """
    _held.pop(id(shared), None)
    _held[id(shared)] = shared
    if len(_held) > _HELD_MAX:
        del _held[next(iter(_held))]


def _of_shared_number(kind: type) -> Callable[[Pickler, Any], Reduced] | None:
    """Find the reducer for values of ctypes, which may be in memory that `multiprocessing` shares."""
    if not any(_inherits(kind, "ctypes", name) for name in ("_SimpleCData", "Array", "Structure", "Union")):
        return None
    plain = plain_reducer(kind)

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        if not _is_shared_number(found):
            return NotImplemented if plain is None else plain(pickler, found)
        _hold(found)
        rebuild = sys.modules["multiprocessing.sharedctypes"].rebuild_ctype
        is_array = hasattr(found, "_length_")
        return rebuild, (found._type_ if is_array else kind, found._wrapper, found._length_ if is_array else None)

    return reduce


def _is_shared_number(found: Any) -> bool:
    return "_wrapper" in getattr(found, "__dict__", ()) and "multiprocessing.sharedctypes" in sys.modules


def _of_arena(kind: type) -> Callable[[Pickler, Any], Reduced] | None:
    """Find the reducer for the file in which shared memory is; multiprocessing gives children its descriptor."""
    return _reduce_arena if _inherits(kind, "multiprocessing.heap", "Arena") else None


def _reduce_arena(pickler: Pickler, arena: Any) -> Reduced:
    where = rebuild_arenas.opened_at(arena)
    if where is None:
        status = os.fstat(arena.fd)
        where = os.getpid(), arena.fd, status.st_dev, status.st_ino
    return rebuild_arenas.open_arena, (*where, arena.size)


def _of_tqdm(kind: type) -> Callable[[Pickler, Any], Reduced] | None:
    """Find the reducer for the lock of tqdm's bars, with which `process_map` initializes workers: each engine has one.

    Engines do not write to one terminal, so that they need not share it.
    """
    if _inherits(kind, "tqdm.std", "TqdmDefaultWriteLock"):
        return lambda pickler, found: (type(found), ())
    if not _inherits(kind, "multiprocessing.synchronize", "RLock"):
        return None
    plain = plain_reducer(kind)

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        owner: Any = getattr(sys.modules.get("tqdm.std"), "TqdmDefaultWriteLock", None)
        if found is getattr(owner, "mp_lock", None):
            return getattr, (owner(), "mp_lock")
        return NotImplemented if plain is None else plain(pickler, found)

    return reduce


KINDS: list[Callable[[type], Callable[[Pickler, Any], Reduced] | None]] = [
    _of_manager_proxy,
    _of_shared_number,
    _of_arena,
    _of_tqdm,
]
"""For `pickler.KINDS`."""


def refuse_key_of(obj: object) -> None:
    """Raise UnpickleableException for an object whose content other processes may change: no key can stand for it."""
    kind: Any = type(obj)
    if _is_shared(kind) or _is_shared_number(obj):
        raise UnpickleableException(
            f"a {kind.__module__}.{kind.__qualname__} is shared with other processes, which may change it, so that"
            " results cannot be kept for it: pass its content, or leave cache=True out"
        )


@functools.lru_cache(1024)
def _is_shared(kind: Any) -> bool:
    modules = "multiprocessing.managers", "multiprocessing.shared_memory"
    return any(base.__module__ in modules for base in kind.__mro__) and kind.__name__ not in ("Token", "Namespace")
