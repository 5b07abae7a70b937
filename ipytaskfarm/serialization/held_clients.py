"""Lets the objects of a program travel that hold a client: ``self.tc.map(self.step, items)``.

A class of a program often has the steps that run in tasks, and a method that submits them by a client among its
attributes. On the engine a stand-in has the client's place, and says so if a task uses it.
"""

from __future__ import annotations

from typing import Any

from .module_origin import Travel, travel
from .pickler import Pickler, Reduced, is_reduced_by_default
from .process_values import AbsentClient, is_client


class AbsentClientPickler(Pickler):
    """Writes stand-ins for the clients that objects of the program have as attributes.

    It is asked only for what cannot be pickled otherwise.
    """

    left_out: dict[str, None]
    """What was written in another way than `pickle` would, so that a walk through the object cannot name it."""

    def reducer_override(self, obj: Any) -> Reduced:
        absent = _clients_of(obj)
        if not absent:
            return super().reducer_override(obj)
        self.left_out.update(dict.fromkeys(absent))
        made, arguments, state, *others = (*obj.__reduce_ex__(5), None)[:6]
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        attributes = {**attributes, **absent}
        return made, arguments, attributes if slots is None else (attributes, slots), *others[:2]


def absent_client_pickler() -> type[AbsentClientPickler]:
    """Return a pickler of this kind for one object."""
    return type("AbsentClientPickler", (AbsentClientPickler,), {"left_out": {}})


def _clients_of(obj: Any) -> dict[str, AbsentClient]:
    """Return a stand-in for each client that an object of the program has as an attribute."""
    kind: Any = type(obj)
    if travel(kind.__module__) is Travel.REFERENCE or not is_reduced_by_default(kind):
        return {}
    if kind.__getstate__ is not object.__getstate__:  # it says itself what travels
        return {}
    attributes = getattr(obj, "__dict__", None)
    if type(attributes) is not dict:
        return {}
    return {
        name: AbsentClient(type(value).__name__, f"self.{name}")
        for name, value in attributes.items()
        if is_client(value)
    }
