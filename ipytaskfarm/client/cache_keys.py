"""Keys of the result cache: what a call's result depends on, as one digest and in parts."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ..core.messages.result_cache import CODE_OF, CacheKey
from ..core.messages.task_types import Function
from ..core.requirements import Environment
from ..core.text import text_of
from ..serialization.file_arguments import File
from ..serialization.outside_inputs import MODULES
from ..serialization.recipes import ArgumentDigests, Content, FunctionRecipe, recipe_of
from ..serialization.references import Ref
from ..system.user_code import depth_of_user

_encode = msgspec.json.Encoder().encode
_warned: set[str] = set()
_WARNED_MAX = 1000
_NAME_MAX = 200
_looked_for_files: dict[str, int] = {}
"""Digest of a cached function -> how many of its calls were looked at for arguments that name files."""
_CALLS_LOOKED_AT = 20
_PLAIN = frozenset({int, float, complex, str, bytes})
"""Types whose values are equal if their texts are.  None and the truth values are single objects."""


class Decorated:
    """A callable whose key is that of a plain function."""

    undecorated: Callable[..., Any]


def cache_key(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    form: str,
    environment: Environment | None,
    mode: str,
    number: Callable[[Ref], int],
) -> tuple[CacheKey, Function, Content]:
    """Return the key of a call's result, the recipe to send with it, and the content of modules by name in the key.

    Args:
        function, args, kwargs: the call.
        form: tells results of another form apart: "bare" for a `MapTask`.
        environment: the environment that the task uses.
        mode: one of `MODES`.
        number: returns the place of a reference to another task among the task's inputs.

    Warns once of a function that asks for time, chance or the environment, or is given the path of a file.

    Raises:
        OSError: the `File` in an argument cannot be read.
    """
    if isinstance(function, Decorated):
        function = function.undecorated
    recipe = recipe_of(function)
    digests = ArgumentDigests(number, recipe.sentinels)
    arguments = _arguments(function, args, kwargs, digests)
    if environment is not None:
        arguments.append(("the environment", f"{environment.identity} {environment.variant}"))
    if form:
        arguments.append(("the form of the result", form))
    key = hashlib.sha256(_encode((recipe.packed.digest, arguments))).hexdigest()
    if recipe.warnings:
        _warn_of_outside_inputs(recipe)
    _warn_of_paths(recipe, args, kwargs)
    made = CacheKey(key, _shown_name(recipe.name), recipe.packed.digest, tuple(arguments), mode)
    return made, recipe.packed, (*recipe.content, *digests.content.items())


def _arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], digests: ArgumentDigests
) -> list[tuple[str, str]]:
    """Return what each argument is called, and its digest; after it the same of the code that it brings, if any."""
    found: list[tuple[str, str]] = []
    for label, value in _given(function, args, kwargs):
        digest, code, of_code = digests.of(value)
        found.append((label, digest))
        if code:
            found.append((f"{CODE_OF} `{code}`, which {label} brings,", of_code))
    return found


def _given(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Return the arguments behind what they are called.

    Calls that a function cannot tell apart give the same: a parameter has one name, whether it is given by place or by
    name, and an argument that equals the parameter's default is left out, as the default counts with the function.
    """
    plain = function.__func__ if inspect.ismethod(function) else function
    if not inspect.isfunction(plain):
        return (*zip(_labels((), len(args)), args, strict=True), *_named(kwargs), *_order(kwargs))
    code = plain.__code__
    names = code.co_varnames[plain is not function : code.co_argcount]
    defaults = plain.__defaults__ or ()
    first_default = len(names) - len(defaults)
    if not kwargs and len(args) <= first_default:  # most calls
        return zip(_labels(names, len(args)), args, strict=True)
    args, named, places = _by_place(names, code.co_posonlyargcount, args, kwargs)
    labels = _labels(names, places[-1] + 1 if places else 0)
    given = [
        (labels[place], value)
        for place, value in zip(places, args, strict=True)
        if not (first_default <= place < len(names) and _same(value, defaults[place - first_default]))
    ]
    of_names = plain.__kwdefaults__ or {}
    others = {name: value for name, value in named.items() if not (name in of_names and _same(value, of_names[name]))}
    if len(others) < 2:
        return (*given, *_named(others))
    by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return (*given, *_named(others), *_order([name for name in others if name not in by_name]))


def _by_place(
    names: tuple[str, ...], positional_only: int, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any], Sequence[int]]:
    """Return the arguments that have a place among the parameters, the other ones by name, and the places."""
    placed = dict(enumerate(args))
    others: dict[str, Any] = {}
    for name, value in kwargs.items():
        place = names.index(name) if name in names else -1
        if place < max(positional_only, len(args)):
            others[name] = value
        else:
            placed[place] = value
    places = sorted(placed)
    return [placed[place] for place in places], others, places


def _same(value: object, default: object) -> bool:
    """Return whether an argument is its parameter's default, as far as that is seen without a digest."""
    return value is default or (type(value) is type(default) and type(value) in _PLAIN and repr(value) == repr(default))


def _named(kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"argument {name}", value) for name, value in sorted(kwargs.items())]


def _order(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the order of arguments that the function sees in the order of the call, such as those in ``**kwargs``."""
    order = [*names]
    return [("the order of the arguments by name", ", ".join(order))] if order != sorted(order) else []


@functools.lru_cache(maxsize=1000)
def _labels(names: tuple[str, ...], count: int) -> list[str]:
    """Return what the first arguments of a function with these parameters are called."""
    return [f"argument {place + 1}{f' ({names[place]})' if place < len(names) else ''}" for place in range(count)]


@functools.lru_cache(maxsize=1000)
def _shown_name(name: str) -> str:
    return text_of(name)[:_NAME_MAX]


def _warn_of_outside_inputs(recipe: FunctionRecipe) -> None:
    for found, remedy in (
        ([each for each in recipe.warnings if not each.startswith(MODULES)], "make it an argument"),
        ([each for each in recipe.warnings if each.startswith(MODULES)], "import them by their names"),
    ):
        if found:
            asked = f"is cached and asks for {', '.join(found)}"
            _warn_once(recipe, asked, f"{remedy}, or do not cache this function")


def _warn_of_paths(recipe: FunctionRecipe, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Warn if an argument is the path of a file, and no `File`.  Only a function's first calls pay for the look."""
    looked = _looked_for_files.get(recipe.packed.digest, 0)
    if looked >= _CALLS_LOOKED_AT or len(_looked_for_files) >= _WARNED_MAX:
        return
    _looked_for_files[recipe.packed.digest] = looked + 1
    for value in (*args, *kwargs.values()):
        if not isinstance(value, (str, os.PathLike)) or isinstance(value, File):
            continue
        if os.path.isfile(value):
            given = f"is cached and is given the path of a file, {text_of(repr(os.fspath(value)))[:_NAME_MAX]}"
            _warn_once(recipe, given, "with `File(path)` as the argument its content counts")
            _looked_for_files[recipe.packed.digest] = _CALLS_LOOKED_AT
            return


def _warn_once(recipe: FunctionRecipe, why: str, remedy: str) -> None:
    told = f"{recipe.name} {why}"
    if told in _warned or len(_warned) >= _WARNED_MAX:
        return
    _warned.add(told)
    warnings.warn(
        f"`{recipe.name}` {why}: a kept result does not change with it; {remedy}",
        UserWarning,
        stacklevel=depth_of_user(),
    )
