"""The door to pickle: values, functions and errors as bytes.

    pack, unpack                     values; names what cannot be pickled by its path inside the object
    pack_names                       the dict of pulled names
    pack_function, unpack_function   functions, named by a digest of what they do
    for_many                         a function for many calls in a row
    pack_error, unpack_error         exceptions with all that they refer to, and the user's part of their tracebacks
    chain_of, traceback_of           the exceptions that Python prints with one, and a traceback
    pack_environment, unpack_environment   an environment, with digests of its class and of all of it
    add_dependency                   makes more modules travel by value

Nothing here is used by controller and agents: to them all of it is bytes.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from ..core.errors import UnpickleableException, VersionMismatch
from ..core.messages.task_types import Function
from ..storage.blobs import BlobWriter
from .cache import WITH_BUFFERS, class_digests, dumps, packed_function, unframe
from .exceptions import brief_error, chain_of, pack_error, traceback_of, unpack_error
from .missing_modules import missing
from .module_origin import add_dependency
from .packing_notice import notice
from .rebuild import bind, for_many, loading
from .refusals import explain, find_culprit, type_name

__all__ = [
    "add_dependency",
    "brief_error",
    "chain_of",
    "class_digest",
    "for_many",
    "pack",
    "pack_environment",
    "pack_error",
    "pack_function",
    "pack_names",
    "traceback_of",
    "unpack",
    "unpack_environment",
    "unpack_error",
    "unpack_function",
]


def pack(obj: Any, names: str | tuple[str, ...] = "value", keeper: BlobWriter | None = None) -> bytes:
    """Pickle (protocol 5) that takes what cannot be imported on the other side by value.

    Args:
        obj: the value.
        names: what an error message calls it; a tuple gives the name of each item of a tuple, such as
            ``("args", "kwargs")``.
        keeper: takes what is large, so that only its digest travels; None: everything stays in the pack.

    Raises:
        UnpickleableException: a part cannot travel; the message says where it is, and what to do.
    """
    if notice.on:
        notice.begin(obj, names)
    try:
        return dumps(obj, keeper)
    except Exception as error:
        raise _refusal(obj, names, error) from error
    finally:
        notice.what = None


def _refusal(obj: Any, names: str | tuple[str, ...], error: Exception) -> Exception:
    if isinstance(error, VersionMismatch | MemoryError):
        return error
    try:
        path, culprit = find_culprit(obj, names, _fails)
    except RecursionError:  # an object's own code that looks at itself for ever
        path, culprit = "", obj
    if isinstance(error, RecursionError) and culprit is obj:
        return UnpickleableException(f"{path or names}: nested too deeply to be pickled")
    return UnpickleableException(explain(path or str(names), culprit, error))


def _fails(obj: Any) -> bool:
    try:
        dumps(obj)
    except Exception:
        return True
    return False


def unpack(data: bytes | memoryview, namespace: MutableMapping[str, Any] | None = None) -> Any:
    """Return the value again.  Arrays can be written to.

    Args:
        data: what `pack` gave.  If it is writable memory (a private map), large arrays stand on it uncopied.
        namespace: where functions in it look names up that they did not bring: the engine's user namespace.
            None in a client: its ``__main__``, and its own modules are taken as they are.

    Raises:
        VersionMismatch: a function in it was made by another minor version of Python.
        BlobMissing: it lies in a blob that is not to be had here.
        ModuleMissing: it needs a module that goes by name and is not installed here.
        Exception: anything that a class's own code raises when it is rebuilt.
    """
    if namespace is None:
        return _loads(data)
    return unpack_lasting(data, namespace, None)


def unpack_lasting(
    data: bytes | memoryview, namespace: MutableMapping[str, Any] | None, steps: list[Callable[[], Any]] | None
) -> Any:
    """As `unpack`, for a value that outlives the task.

    Args:
        data: as for `unpack`.
        namespace: as for `unpack`.
        steps: collects what a later task has to call before it uses the value: its modules are put in place.
    """
    outer = loading.namespace, loading.names, loading.before
    names: list[Any] = []
    loading.namespace, loading.names, loading.before = namespace, names, steps
    try:
        value = _loads(data)
    finally:
        loading.namespace, loading.names, loading.before = outer
    for each in names:
        each.settle()
    return value


def _loads(data: bytes | memoryview) -> Any:
    try:
        if data[0] != WITH_BUFFERS:
            return pickle.loads(data)
        body, buffers = unframe(memoryview(data))
        return pickle.loads(body, buffers=buffers)
    except ModuleNotFoundError as error:
        raise missing(error) from error


_PLAIN = frozenset({int, float, bool, complex, type(None)})


def pack_names(
    values: Mapping[str, Any], namespace: Mapping[str, Any] | None = None, keeper: BlobWriter | None = None
) -> bytes:
    """Pack a dict of pulled names; errors name the variable.

    Args:
        values: name -> value.
        namespace: where they were pulled from, to refuse ``a = globals()`` readably.
        keeper: as for `pack`.
    """
    values = dict(values)
    if _PLAIN.issuperset(map(type, values.values())):
        return pickle.dumps(values, 5)  # the commonest results by far, and nothing in them to look at
    for name, value in values.items():
        if isinstance(value, types.ModuleType):
            raise UnpickleableException(f"{name!r} holds a module ({value.__name__}): pull names instead")
        if isinstance(value, dict):
            if value is namespace:
                raise UnpickleableException(f"{name!r} holds the engine's whole namespace: pull names instead")
            module = next((each for each in value.values() if isinstance(each, types.ModuleType)), None)
            if module is not None:
                text = f"{name!r} holds a dict with a module ({module.__name__}) in it: pull names instead"
                raise UnpickleableException(text)
    try:
        return dumps(values, keeper)
    except Exception as error:
        raise _pull_refusal(values, error) from error


def _pull_refusal(values: dict[str, Any], error: Exception) -> Exception:
    name = next((name for name, value in values.items() if _fails(value)), None)
    if name is None:
        return _refusal(values, "pull", error)
    refusal = _refusal(values[name], name, error)
    if not isinstance(refusal, UnpickleableException):
        return refusal
    return UnpickleableException(f"{name!r} holds a {type_name(values[name])} that cannot be sent: {refusal}")


# --------------------------------------------------------------------------------------------------


def pack_function(function: Callable[..., Any]) -> Function:
    """Return a callable as code, named by a digest of what it does.

    Importable ones travel as their name; the notebook's own, and those of modules that travel by value, with their
    closures, defaults and the globals that they use.  The pack is used again while all of these are the identical
    objects; a callable that stands on something that can change unseen is looked through each time.

    Raises:
        UnpickleableException: something it stands on cannot travel.
    """
    if notice.on:
        notice.begin(function, getattr(function, "__qualname__", type(function).__name__))
    try:
        return packed_function(function)
    except Exception as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise _refusal(function, name, error) from error
    finally:
        notice.what = None


def unpack_function(code: bytes, namespace: MutableMapping[str, Any] | None = None) -> Callable[..., Any]:
    """Return the callable again; make it once and call it often.

    Each call starts from the globals that were packed: what an earlier call assigned to them is gone (what it put
    *into* one of them stays, as it does for the defaults of any function).  A name that was not packed is looked up
    in `namespace` as it is at the call, then among the builtins.

    Args:
        code: `Function.code`.
        namespace: as for `unpack`.
    """
    outer = loading.namespace, loading.names, loading.before
    names: list[Any] = []
    before: list[Callable[[], Any]] = []
    loading.namespace, loading.names, loading.before = namespace, names, before
    try:
        function = _loads(code)
    finally:
        loading.namespace, loading.names, loading.before = outer
    bound: Callable[..., Any] = bind(function, names, before)
    if bound is not function:
        bound.brought = (names, before)  # type: ignore[attr-defined]
    return bound


def pack_environment(environment: object) -> tuple[Function, str]:
    """Return an environment as code named by a digest of class and attributes, and the digest of its class alone."""
    try:
        return packed_function(environment), class_digest(type(environment))  # type: ignore[arg-type]
    except Exception as error:
        raise _refusal(environment, type(environment).__name__, error) from error


def class_digest(cls: type) -> str:
    """Return a digest of what a class is now, by its code; cheap when it has not changed."""
    return class_digests(cls)[1]


unpack_environment = unpack
