"""Lets what cannot be pickled travel as a member of a module of the project: ``from service import pool``.

An engine that runs the function imports the module, and finds an object of its own under the name, as a function does
that mentions ``service.pool``.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from .held_clients import AbsentClientPickler
from .module_origin import Travel, travel
from .pickler import Reduced, by_member, dumps_inline

_NEVER = (
    bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, type, types.ModuleType,
    types.FunctionType, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, type(None),
)  # fmt: skip
"""Types that travel, or that mean something else on each engine."""


class MemberPickler(AbsentClientPickler):
    """Writes members of the project's modules that cannot travel themselves by their names."""

    places: dict[int, tuple[str, str]]
    """Address of an object -> the module that has it, and its name there."""
    named: dict[str, None]
    """The places that were written."""

    def reducer_override(self, obj: Any) -> Reduced:
        place = self.places.get(id(obj))
        if place is None or _travels(obj):
            return super().reducer_override(obj)
        self.named[".".join(place)] = None
        return by_member(*place)


def member_pickler() -> type[MemberPickler] | None:
    """Return a pickler that knows the present members of the project's modules; None if there are none."""
    places = _places()
    return type("MemberPickler", (MemberPickler,), {"places": places, "named": {}, "left_out": {}}) if places else None


def place_of(value: Any) -> tuple[str, str] | None:
    """Return the module of the project that has an object, and its name there; None if no module has it."""
    return _places().get(id(value))


def _places() -> dict[int, tuple[str, str]]:
    places: dict[int, tuple[str, str]] = {}
    for module_name, module in list(sys.modules.items()):
        if module_name == "__main__" or travel(module_name) is not Travel.SOURCE:
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if not isinstance(value, _NEVER) and not _is_ours(value) and getattr(module, name, None) is value:
                places.setdefault(id(value), (module_name, name))
    return places


def _is_ours(value: Any) -> bool:
    """Return whether a value is a client, a farm or the like, for which its refusal knows a remedy."""
    return str(type(value).__module__).partition(".")[0] == __name__.partition(".")[0]


def _travels(value: Any) -> bool:
    try:
        dumps_inline(value)
    except Exception:
        return False
    return True
