"""Code that comes with tasks and is stored once."""

from __future__ import annotations

from ..decision import Decision
from ..farm import SchedulerState
from ..parcels import Function
from ..saves import SaveFunction


def save_functions(farm: SchedulerState, functions: list[Function], out: Decision) -> None:
    """Save code that the store does not have.  Of two codes under one digest the first one stays."""
    for function in functions:
        if function.digest not in farm.functions.stored:
            farm.functions.stored.add(function.digest)
            out.saves.append(SaveFunction(function.digest, function.code))
