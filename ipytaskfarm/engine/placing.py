"""Places names in the engine's namespace for code that a command calls there."""

from __future__ import annotations

from typing import Any

from ..serialization.function_globals import BY_CALL, placed
from ..serialization.modules import take_placed_names
from . import user_namespace


def place_by_call(values: dict[str, Any], function: str) -> None:
    """Bind names that a function has assigned, with the precedence of pushed names over what functions bring.

    Args:
        values: the names and their values.
        function: the qualified name of the function.
    """
    user_namespace().update(values)
    placed.add(values, BY_CALL + function)
    take_placed_names()
