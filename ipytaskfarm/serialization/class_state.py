"""Finds the state of a class: those of its attributes that its own code changes."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from typing import Any

from .code_objects import functions_in
from .global_names import mentioned, nested_codes
from .kept_changes import CONTAINERS, may_store
from .module_origin import Travel, travel

_SKIPPED = frozenset({"CACHE", "EXTENDED_ARG"})


def state_of_class(cls: type) -> frozenset[str]:
    """Return the names of the class's own attributes that methods of it, of its bases or of its metaclass change.

    ``Model.count += 1``, ``cls.known[name] = …``, ``next(Model.ids)``: such attributes are the *state* of the class,
    which each process has for itself. They do not tell which class it is, as a call changes them, here or on an engine.
    """
    found: set[str] = set()
    changing: set[str] = set()
    drawing: set[str] = set()
    for code, owner in _codes_of(cls):
        found |= _set_on_classes(code, owner)
        drawing |= mentioned(code)
        if may_store(code):
            changing |= mentioned(code)
    return frozenset(
        name
        for name, value in vars(cls).items()
        if not (name.startswith("__") and name.endswith("__"))
        and (
            name in found
            or (name in changing and isinstance(value, CONTAINERS))
            or (name in drawing and isinstance(value, Iterator))
        )
    )


def _codes_of(cls: type) -> Iterator[tuple[types.CodeType, str]]:
    """Yield the code of each method, below its decorators, and the name of its parameter that is an instance; or ""."""
    for kind, of_instances in ((cls, True), (type(cls), False)):
        for base in kind.__mro__:
            if travel(base.__module__) is Travel.REFERENCE:
                continue
            for name, value in vars(base).items():
                by_class = name == "__new__" or isinstance(value, staticmethod | classmethod)
                for function in functions_in(value):
                    if travel(function.__module__) is not Travel.REFERENCE:
                        code = function.__code__
                        is_method = of_instances and not by_class and code.co_argcount
                        yield code, code.co_varnames[0] if is_method else ""


@functools.lru_cache(4096)
def _set_on_classes(code: types.CodeType, instance: str) -> frozenset[str]:
    """Return the attributes that a code sets on anything but the variable `instance`."""
    found: set[str] = set()
    for each in nested_codes(code):
        loaded = copied = ""
        for step in dis.get_instructions(each):
            if step.opname in _SKIPPED:
                continue
            if step.opname == "STORE_ATTR" and (not instance or loaded != instance):
                found.add(step.argval)
            elif step.opname == "COPY":
                copied = loaded
            loaded = _loaded(step) if step.opname != "SWAP" else copied  # of ``self.n += 1``
    return frozenset(found)


def _loaded(step: dis.Instruction) -> Any:
    """Return the local variable that an instruction loads last; "" for all other instructions."""
    if not step.opname.startswith("LOAD_FAST"):
        return ""
    return step.argval[-1] if isinstance(step.argval, tuple) else step.argval
