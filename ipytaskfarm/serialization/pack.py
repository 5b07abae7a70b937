"""The interface of serialization: values, functions and errors as bytes.

    pack, unpack                     values; an error names the part that cannot be pickled by its path in the object
    pack_names                       the dict of pulled names
    pack_function, unpack_function   functions, named by a digest of what they do
    pack_called, unpack_called       the function of one call; those of one code share a template
    for_many                         a function for many calls in a row
    is_coroutine_function            whether a task with the function may share an engine with others
    pack_error, unpack_error         exceptions with all that they refer to, and the user's part of their tracebacks
    chain_of, traceback_of           the exceptions that Python prints with an exception, and a traceback
    pack_environment, unpack_environment   an environment, with digests of its class and of the whole
    add_dependency                   makes more modules travel by value

Controller and agents use nothing from here: for them these are bytes.
"""

from __future__ import annotations

import contextlib
import inspect
import pickle
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from ..core.errors import TaskFarmError, UnpickleableException, VersionMismatch
from ..core.messages.task_types import Function
from ..storage.blobs import BlobWriter
from .cache import class_digests, dumps, loads, packed_function, unchanged_function
from .exceptions import brief_error, chain_of, missing, pack_error, traceback_of, unpack_error
from .function_globals import Names
from .function_parts import closure_of
from .function_templates import SplitFunction, fill_template, may_compare, split_function
from .module_bundles import size_text, working
from .module_origin import add_dependency
from .rebuild import Renewing, bind, for_many, loading
from .refusals import LOOKED_AT_MAX, PATH_CHARACTERS_MAX, Culprit, explain, find_culprit, type_name

NOTICE_AFTER_S = 2.0
_LOOK_EVERY_S = 0.25
_IDLE_S = 30.0
"""The watching thread ends when nothing was packed for this time."""


class PackingNotice:
    """The packing in progress in this process, and when it began."""

    def __init__(self) -> None:
        self.on = False
        """Whether notices are shown. Only clients set this: nobody reads what an engine prints by itself."""
        self.what: Any = None
        self.name = ""
        self.begun = 0.0
        self.thread: threading.Thread | None = None

    def begin(self, what: Any, name: str | tuple[str, ...]) -> None:
        """Record that packing begins. The caller sets `what` to None when it has ended."""
        self.name = name if isinstance(name, str) else name[0]
        self.begun = time.monotonic()
        self.what = (what,)
        if self.thread is None:
            self.thread = threading.Thread(target=self._look, name="ipytaskfarm packing notice", daemon=True)
            self.thread.start()

    def _look(self) -> None:
        said = 0.0
        while time.monotonic() - self.begun < _IDLE_S or self.what is not None:
            time.sleep(_LOOK_EVERY_S)
            what, begun = self.what, self.begun
            if what is not None and begun != said and time.monotonic() - begun > NOTICE_AFTER_S:
                said = begun
                print(f"packing {self.name}: {working.what or _largest(what[0])} …", file=sys.stderr, flush=True)
        self.thread = None


notice = PackingNotice()


def _largest(obj: Any) -> str:
    """Describe the largest part, as far as it can be found without a deep search."""
    try:
        return _described(max(_parts(obj), key=_size, default=obj))
    except Exception:  # it changes while another thread packs it, or the user's code that gives its size fails
        return f"a {type(obj).__name__}"


def _parts(obj: Any) -> Iterable[Any]:
    if isinstance(obj, types.FunctionType):
        yield from (obj.__globals__[name] for name in obj.__code__.co_names if name in obj.__globals__)
        yield from obj.__defaults__ or ()
        yield from (value for _, value in closure_of(obj))
    elif isinstance(obj, tuple | list):
        for each in obj[:1000]:
            yield from _parts(each)
    elif isinstance(obj, dict):
        yield from obj.values()
    else:
        yield obj


def _size(obj: Any) -> int:
    size = getattr(obj, "nbytes", None)
    return size if isinstance(size, int) else sys.getsizeof(obj)


def _described(obj: Any) -> str:
    name = type(obj).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name} ({size_text(_size(obj))})"


__all__ = [
    "add_dependency",
    "brief_error",
    "chain_of",
    "class_digest",
    "for_many",
    "is_coroutine_function",
    "note_rebuild",
    "pack",
    "pack_arguments",
    "pack_called",
    "pack_environment",
    "pack_error",
    "pack_function",
    "pack_names",
    "split_called",
    "traceback_of",
    "unpack",
    "unpack_called",
    "unpack_environment",
    "unpack_error",
    "unpack_function",
]


PLAIN = frozenset({int, float, bool, complex, type(None)})
"""The types of values in which there is nothing to look at."""


def pack(obj: Any, names: str | tuple[str, ...] = "value", writer: BlobWriter | None = None) -> bytes:
    """Pickle an object (protocol 5). Parts that the other side cannot import travel by value.

    Args:
        obj: the value.
        names: the name of the value in error messages; a tuple names each item of a tuple, such as ``("args",
            "kwargs")``.
        writer: stores large parts as blobs, so that only their digests travel; None keeps everything in the pack.

    Returns:
        The pack.

    Raises:
        UnpickleableException: a part cannot travel. The message names the part and the remedy.
    """
    if type(obj) in PLAIN:
        return pickle.dumps(obj, 5)  # the commonest results by far, and nothing in them to look at
    if notice.on:
        notice.begin(obj, names)
    try:
        return dumps(obj, writer)
    except Exception as error:
        raise _refusal(obj, names, error) from _first(error)
    finally:
        notice.what = None


def pack_arguments(args: Sequence[Any], kwargs: dict[str, Any], writer: BlobWriter | None = None) -> bytes:
    """Pack the arguments of a call as the tuple of both; writer: as for `pack`."""
    if not kwargs and PLAIN.issuperset(map(type, args)):
        return pickle.dumps((args, kwargs), 5)
    return pack((args, kwargs), ("args", "kwargs"), writer)


def _refusal(obj: Any, names: str | tuple[str, ...], error: Exception) -> Exception:
    if isinstance(error, VersionMismatch | MemoryError | Warning):  # the program makes errors of warnings
        return error
    try:
        found = find_culprit(obj, names, _fails, _LEVELS_SHOWN if _is_too_deep(error) else LOOKED_AT_MAX)
    except RecursionError:  # the object's own code calls itself without end
        found = Culprit("", obj, None)
    if isinstance(error, RecursionError) and (found.part is obj or _is_too_deep(error, found.path)):
        begin = found.path[:40] + "…" if len(found.path) > PATH_CHARACTERS_MAX else found.path or str(names)
        return UnpickleableException(f"{begin}: nested too deeply to be pickled: send it flat, as a list of its parts")
    return UnpickleableException(explain(found._replace(path=found.path or str(names)), error))


_LEVELS_SHOWN = 16
"""Of an object that is nested too deeply, the first levels say where it is."""


def _is_too_deep(error: Exception, path: str = "") -> bool:
    """Return whether the nesting of an object is at fault, and not a method that calls itself without end.

    How deep an object may be depends on the Python, so the part that was found may be near the top."""
    return len(path) > PATH_CHARACTERS_MAX or (
        isinstance(error, RecursionError) and "while pickling an object" in str(error)
    )


def _first(error: Exception) -> Exception:
    """Return the error without those that came before it: what was tried on the way says nothing to the user.

    Since Python 3.14 it has a note for each level, which names the pickler's parts; the path in the message says more.
    """
    error.__context__ = None
    if notes := getattr(error, "__notes__", None):
        error.__notes__ = [each for each in notes if not each.startswith("when serializing ")]
    return error


def _fails(obj: Any) -> bool:
    try:
        dumps(obj)
    except Exception:
        return True
    return False


def unpack(data: bytes | memoryview, namespace: MutableMapping[str, Any] | None = None) -> Any:
    """Return the value. Its arrays are writable.

    Args:
        data: the bytes that `pack` returned. If the memory is writable (a private map), large arrays use it without a
            copy.
        namespace: the engine's user namespace, in which functions look up names that they did not bring. None in a
            client:
            they use its ``__main__``, and its own modules are used as they are.

    Raises:
        VersionMismatch: another minor version of Python made a function in it.
        BlobMissing: a part is in a blob that is not available here.
        ModuleMissing: it needs a module that goes by name and is not installed here.
        Exception: any error that a class's own code raises while it is rebuilt.
    """
    if namespace is None:
        return _loads(data)
    return unpack_lasting(data, namespace, None)


def note_rebuild(error: Exception, what: str) -> None:
    """Say in a note of an error, which a class of the user raised while a value was rebuilt, that this was so.

    what: "the arguments were rebuilt on the engine".
    """
    if isinstance(error, TaskFarmError):
        return  # it says so itself
    with contextlib.suppress(Exception):
        module = _imported(error)
        if module:
            error.add_note(f"this happened while {what}: {module} was imported for it, and has the error")
            return
        error.add_note(
            f"this happened while {what}: pickle had taken a value that cannot be made again; "
            "`pickle.loads(pickle.dumps(value))` tells which, and a `__reduce__` of its class mends it"
        )


def _imported(error: Exception) -> str:
    """Return the file of the module whose import has raised the error; "": no import has."""
    if isinstance(error, SyntaxError) and error.filename:
        return str(error.filename)
    file, inside = "", False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        inside = inside or frame.f_globals.get("__name__") == __name__  # above may be the user's program itself
        if inside and frame.f_code.co_name == "<module>":
            file = frame.f_code.co_filename
    return file


def unpack_with_globals(
    data: bytes | memoryview, namespace: MutableMapping[str, Any] | None
) -> tuple[Any, list[Names]]:
    """Return a value as `unpack` does, and the globals of the by-value functions in it."""
    return _unpack_settled(data, namespace, None)


def unpack_lasting(
    data: bytes | memoryview, namespace: MutableMapping[str, Any] | None, steps: list[Callable[[], Any]] | None
) -> Any:
    """Return a value that outlives the task; otherwise like `unpack`.

    steps: collects the functions that a later task must call before it uses the value. They install its modules.
    """
    return _unpack_settled(data, namespace, steps)[0]


def _unpack_settled(
    data: bytes | memoryview, namespace: MutableMapping[str, Any] | None, steps: list[Callable[[], Any]] | None
) -> tuple[Any, list[Names]]:
    outer = loading.namespace, loading.names, loading.before
    names: list[Names] = []
    loading.namespace, loading.names, loading.before = namespace, names, steps
    try:
        value = _loads(data)
    finally:
        loading.namespace, loading.names, loading.before = outer
    for each in names:
        each.settle()
    return value, names


def _loads(data: bytes | memoryview) -> Any:
    try:
        return loads(data)
    except ModuleNotFoundError as error:
        raise missing(error) from error


def pack_names(
    values: Mapping[str, Any], namespace: Mapping[str, Any] | None = None, writer: BlobWriter | None = None
) -> bytes:
    """Pack a dict of pulled names. An error names the variable.

    Args:
        values: name -> value.
        namespace: the namespace that they were pulled from; ``a = globals()`` is refused with a clear message.
        writer: see `pack`.
    """
    values = dict(values)
    if PLAIN.issuperset(map(type, values.values())):
        return pickle.dumps(values, 5)  # the most frequent results by far, with nothing to examine
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
        return dumps(values, writer)
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


def pack_function(function: Callable[..., Any], writer: BlobWriter | None = None) -> Function:
    """Return a callable as code, named by a digest of what it does.

    An importable callable travels as its name. A callable of the notebook, or of a module that travels by value,
    travels with its closure, its defaults and the globals that it uses. The pack is reused as long as all of these are
    the same objects. If one of them can change unseen, the callable is examined at each call.

    Args:
        function: the callable.
        writer: as for `pack`. The task needs the blobs that it writes for as long as it needs the function.

    Raises:
        UnpickleableException: something that the callable uses cannot travel.
    """
    known = unchanged_function(function)
    if known is not None:
        return known
    if notice.on:
        notice.begin(function, getattr(function, "__qualname__", type(function).__name__))
    try:
        return packed_function(function, writer)
    except Exception as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise _refusal(function, name, error) from _first(error)
    finally:
        notice.what = None


def pack_called(function: Callable[..., Any], writer: BlobWriter | None = None) -> tuple[Function, bytes | None]:
    """Return the function of one call as `pack_function` does, and the packed values of its closure and defaults.

    Functions of one code share a template, if these values are plain ones.  For others the second value is None, and
    the function has all.  `fill_template` joins both again.
    """
    parts = split_called(function, writer)
    return (pack_function(function, writer), None) if parts is None else (parts[1], parts[0].values)


def split_called(
    function: Callable[..., Any], writer: BlobWriter | None = None
) -> tuple[SplitFunction, Function] | None:
    """Return a function in two parts, and its template packed; None: it travels as a whole."""
    split = split_function(function)
    if split is None:
        return None
    try:
        packed = pack_function(split.template, writer)
    except UnpickleableException:  # the error is to be about the function of the user
        return None
    return None if split.has_objects and may_compare(split.template, packed.digest) else (split, packed)


def unpack_called(
    code: bytes, values: bytes | None, namespace: MutableMapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Return the callable of what `pack_called` returned."""
    function = unpack_function(code, namespace)
    return function if values is None else fill_template(function, unpack(values))


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Return whether a call of the function makes a coroutine: ``async def``, also as a method or in a partial."""
    code = getattr(function, "__code__", None)
    if code.__class__ is types.CodeType:  # most functions, and quicker than `inspect`
        return bool(code.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(function)


def unpack_function(code: bytes, namespace: MutableMapping[str, Any] | None = None) -> Callable[..., Any]:
    """Return the callable. Unpack it once and call it often.

    Each call starts with the packed globals: assignments of an earlier call are undone (a change *inside* one of the
    objects stays, as it does for the defaults of any function). A name that was not packed is looked up in `namespace`
    at the call, then among the builtins.  A function whose attribute ``renews`` is true is to be unpacked anew for each
    task.

    Args:
        code: the bytes in `Function.code`.
        namespace: see `unpack`.
    """
    outer = loading.namespace, loading.names, loading.before
    names: list[Any] = []
    before: list[Callable[[], Any]] = []
    loading.namespace, loading.names, loading.before = namespace, names, before
    try:
        function = _loads(code)
    finally:
        loading.namespace, loading.names, loading.before = outer
    renews = type(function) is Renewing
    if renews:
        function = function.function
    bound: Callable[..., Any] = bind(function, names, before, renews)
    if bound is not function:
        bound.brought = (names, before)  # type: ignore[attr-defined]
        bound.renews = renews  # type: ignore[attr-defined]
    return bound


def pack_environment(environment: object) -> tuple[Function, str]:
    """Return (the environment as code, named by a digest of its class and attributes; the digest of its
    class alone).
    """
    try:
        code = unchanged_function(environment) or packed_function(environment, is_environment=True)
        return code, class_digest(type(environment))
    except Exception as error:
        raise _refusal(environment, type(environment).__name__, error) from _first(error)


def class_digest(cls: type) -> str:
    """Return the digest of a class's present definition. This is cheap if the class has not changed."""
    return class_digests(cls)[2]


def unpack_environment(code: bytes, namespace: MutableMapping[str, Any] | None = None) -> tuple[Any, list[Names]]:
    """Return an environment, from the `code` of what `pack_environment` returned, and the globals of the functions that
    came with it.
    """
    return _unpack_settled(code, namespace, None)
