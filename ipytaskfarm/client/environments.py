"""Pack environments for sending: their identity, their settings and their code."""

from __future__ import annotations

import hashlib
import weakref
from pathlib import PurePath
from typing import Any

from ..core.arguments import check_seconds, wrong
from ..core.messages.task_types import Function
from ..core.requirements import Environment, Recycle
from ..core.text import escaped, text_of
from ..environment import TaskEnvironment
from ..serialization.pack import class_digest, pack_environment

_ATOMS = (str, int, float, bool, bytes, type(None), PurePath)

_packed: weakref.WeakKeyDictionary[TaskEnvironment, tuple[Any, Environment, Function]] = weakref.WeakKeyDictionary()
"""Environment -> (its class and attributes when it was packed, the packed environment, its code)."""


def pack_environment_of(
    environment: TaskEnvironment | None, functions: dict[str, Function]
) -> tuple[Environment | None, Recycle | None]:
    """Return an environment and its recycle settings as messages, and add its code to `functions`."""
    if environment is None:
        return None, None
    settings = environment.recycle.as_message()
    if environment.is_empty:
        return None, settings
    packed, code = _pack(environment)
    functions[packed.identity] = code
    return packed, settings


def _pack(environment: TaskEnvironment) -> tuple[Environment, Function]:
    seen = _seen(environment)
    known = _packed.get(environment) if seen is not None else None
    if known is not None and known[0] == seen:
        return known[1], known[2]
    code, class_name = pack_environment(environment)
    unique = None
    identity = code.digest
    if environment.unique_id is not None:
        more = "None" if environment.additional_id is None else _id_text("additional_id", environment.additional_id)
        unique = f"{_id_text('unique_id', environment.unique_id)}|{more}"
        identity = hashlib.blake2b(f"{class_name}|{unique}".encode(), digest_size=20).hexdigest()
    made = Environment(
        identity=identity,
        name=text_of(environment.name)[:200],
        unique=unique,
        variant=code.digest if unique is not None else "",
        teardown_s=check_seconds("teardown_timeout", environment.teardown_timeout) or 0.0,
    )
    function = Function(identity, code.code)
    if seen is not None:
        _packed[environment] = seen, made, function
    return made, function


ID_MAX = 1000
"""The most characters of each id that people give to an environment."""


def _id_text(what: str, value: object) -> str:
    try:
        text = escaped(str(value))
    except Exception:
        raise wrong(what, "a str or a UUID", value) from None
    if len(text) > ID_MAX:
        raise ValueError(f"{what} has {len(text):,} characters, and {ID_MAX:,} are the most: give a digest of it")
    return text


def _seen(environment: TaskEnvironment) -> tuple[str, dict[str, Any], list[type]] | None:
    """Return the class and the attributes of an environment; None if an attribute may change in place.

    Two equal results mean that the environment has not changed since it was packed.  The types count, as 1 equals True.
    """
    state = environment.__getstate__()
    if type(environment).__hash__ is None or not all(isinstance(value, _ATOMS) for value in state.values()):
        return None
    return class_digest(type(environment)), state, [*map(type, state.values())]
