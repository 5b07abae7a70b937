"""Code that came with tasks, kept once."""

from __future__ import annotations

from ..decision import Decision
from ..farm import Farm
from ..parcels import Function
from ..saves import SaveFunction


def save_functions(farm: Farm, functions: list[Function], out: Decision) -> None:
    """Keep code that the store has not seen.  Of two codes under one digest the first one stays."""
    for function in functions:
        if function.digest not in farm.functions:
            farm.functions.add(function.digest)
            out.saves.append(SaveFunction(function.digest, function.code))
