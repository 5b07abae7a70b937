"""Keys of the result cache: what a call's result depends on, as one digest and in parts."""

from __future__ import annotations

import hashlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ..core.messages.result_cache import CODE_OF, CacheKey
from ..core.messages.task_types import Function
from ..core.requirements import Environment
from ..core.text import text_of
from ..display.ipython import cell_of
from ..serialization import recipes
from ..serialization.recipes import ArgumentDigests, FunctionRecipe, recipe_of
from ..serialization.references import Ref

_encode = msgspec.json.Encoder().encode
_warned: set[str] = set()
_WARNED_MAX = 1000
_NAME_MAX = 200


recipes.set_place_of_cell(lambda file: cell_of(file) or "")


def cache_key(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    form: str,
    environment: Environment | None,
    mode: str,
    number: Callable[[Ref], int],
) -> tuple[CacheKey, Function]:
    """Return the key of a call's result, and the recipe to send with it.

    Args:
        function, args, kwargs: the call.
        form: tells results of another form apart: "bare" for a `MapTask`.
        environment: the environment that the task uses.
        mode: one of `MODES`.
        number: returns the place of a reference to another task among the task's inputs.

    Warns once of a function that asks for time, chance or the environment.

    Raises:
        OSError: the `File` in an argument cannot be read.
    """
    recipe = recipe_of(function)
    arguments = _arguments(function, args, kwargs, number)
    if environment is not None:
        arguments.append(("the environment", f"{environment.identity} {environment.variant}"))
    if form:
        arguments.append(("the form of the result", form))
    key = hashlib.sha256(_encode((recipe.packed.digest, arguments))).hexdigest()
    if recipe.warnings:
        _warn(recipe)
    return CacheKey(key, text_of(recipe.name)[:_NAME_MAX], recipe.packed.digest, tuple(arguments), mode), recipe.packed


def _arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], number: Callable[[Ref], int]
) -> list[tuple[str, str]]:
    """Return what each argument is called, and its digest; after it the same of the code that it brings, if any."""
    names = _parameters(function)
    given = [
        (f"argument {place + 1}{f' ({names[place]})' if place < len(names) else ''}", value)
        for place, value in enumerate(args)
    ]
    digests = ArgumentDigests(number)
    found: list[tuple[str, str]] = []
    for label, value in [*given, *((f"argument {name}", value) for name, value in sorted(kwargs.items()))]:
        digest, code, of_code = digests.of(value)
        found.append((label, digest))
        if code:
            found.append((f"{CODE_OF} `{code}`, which {label} brings,", of_code))
    return found


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    if not inspect.isfunction(function):
        return ()
    code = function.__code__
    return code.co_varnames[: code.co_argcount]


def _warn(recipe: FunctionRecipe) -> None:
    told = f"{recipe.name} {recipe.warnings}"
    if told in _warned or len(_warned) >= _WARNED_MAX:
        return
    _warned.add(told)
    warnings.warn(
        f"`{recipe.name}` is cached and asks for {', '.join(recipe.warnings)}: a kept result does not change with it; "
        "make it an argument, or do not cache this function",
        UserWarning,
        stacklevel=depth_of_user(),
    )


def depth_of_user() -> int:
    """Return how many frames the caller is away from the user's code, as `warnings.warn` counts them."""
    package = __name__.partition(".")[0]
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, depth = frame.f_back, depth + 1
    return depth
