"""Tells that a job is retried with a function that the program has defined anew since."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..system.user_code import tell_user

_JOBS_KEPT = 256
_FUNCTIONS_KEPT = 16


class _SubmittedCode(NamedTuple):
    module: str
    name: str
    code: types.CodeType


_submitted: OrderedDict[str, dict[types.CodeType, _SubmittedCode]] = OrderedDict()
"""Job -> the definitions of its functions. The code alone: a function would keep alive what it refers to."""


def note_functions(job: str, functions: Iterable[object]) -> None:
    """Remember the definitions of functions with which tasks of a job were submitted, as far as they have a name."""
    found = _submitted.setdefault(job, {})
    for function in functions:
        if len(found) == _FUNCTIONS_KEPT:
            break
        if type(function) is types.FunctionType and "<" not in function.__qualname__:
            found[function.__code__] = _SubmittedCode(function.__module__, function.__qualname__, function.__code__)
    while len(_submitted) > _JOBS_KEPT:
        _submitted.popitem(last=False)


def tell_of_edited(job: str) -> None:
    """Tell if the program has another function now under the name of one with which the job was submitted."""
    edited = [each.name for each in _submitted.get(job, {}).values() if _is_edited(each)]
    if edited:
        what = f"{edited[0]} has" if len(edited) == 1 else f"{' and '.join(edited)} have"
        tell_user(
            f"{what} been defined anew since these tasks were submitted; they run again as they were. For the new "
            f"definition: tc.map({edited[0]}, …) over the items that failed, see docs/jobs.md"
        )


def _is_edited(definition: _SubmittedCode) -> bool:
    found: Any = sys.modules.get(definition.module)
    for name in definition.name.split("."):
        found = getattr(found, "__dict__", {}).get(name)  # a module's own __getattr__ may do anything
    return type(found) is types.FunctionType and found.__code__ != definition.code
