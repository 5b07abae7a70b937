"""Check calls before they are submitted: whether a function takes the given arguments, and whether sequences are
readable.

The checks find mistakes before anything is sent.  Only plain functions are checked; an error of another callable shows
in the call itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

from ..core.arguments import wrong
from ..core.signatures import signature_of
from ..core.text import shown
from .rules import DEFAULTS, flag
from .task_arguments import not_a_function
from .tasks import Task


def check_block(task: object, block: object) -> bool:
    """Return the second argument of `run` as a bool.

    Raises TypeError for a value that was meant as an argument of the function.
    """
    if not isinstance(task, Task):
        error = wrong("block", "True or False", block)
        raise TypeError(f"{error}; run takes one task: submit(f, 2), or run(Task(f, args=(2,)))")
    return flag("block", block)


def check_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise TypeError if a plain function does not take these arguments; the error names task rules among them."""
    if type(function) is not FunctionType or _takes(function, len(args), kwargs):
        return
    try:
        signature_of(function, follow_wrapped=False).bind(*args, **kwargs)
    except TypeError as error:
        rules = [name for name in kwargs if name in DEFAULTS and name not in function.__code__.co_varnames]
        remedy = (
            f"; {rules[0]} is a rule of a task: submit(Task({function.__qualname__}, args=(…), {rules[0]}=…))"
            if rules
            else ""
        )
        raise TypeError(f"{function.__qualname__}(): {error}{remedy}") from None


def _takes(function: FunctionType, given: int, kwargs: Mapping[str, Any]) -> bool:
    """Return whether this number of positional arguments is certainly right; False leaves the question to `inspect`.

    `inspect` is slow, and most calls are simple.
    """
    code: CodeType = function.__code__
    if kwargs or code.co_kwonlyargcount:
        return False
    takes = code.co_argcount
    return takes - len(function.__defaults__ or ()) <= given and (
        given <= takes or bool(code.co_flags & inspect.CO_VARARGS)
    )


def _has_items(value: Any) -> bool:
    """Return whether a value without ``__iter__`` can be iterated, unlike numpy scalars."""
    try:
        iter(value)
    except TypeError:
        return False
    return True


def check_map(function: Callable[..., Any], sequences: Sequence[Iterable[Any]], rules: Collection[str] = ()) -> None:
    """Check the arguments of a map.

    rules: the names of its other arguments.  One that the function has is told, if the function needs it.

    Raises:
        TypeError: the first argument is no function, another one is no sequence, or the function takes another number
            of arguments.
        ValueError: a generator has already been read to its end.
    """
    if not callable(function):
        if any(callable(each) for each in sequences):
            raise TypeError(f"map takes the function first: map(function, sequence), not map({shown(function, 40)}, …)")
        raise not_a_function("the first argument of map", "a function", function, "map(f, values)")
    for each in sequences:
        if not isinstance(each, Iterable) and not _has_items(each):
            raise TypeError(
                f"{wrong('an argument of map', 'a sequence, with one item for each call', each)};"
                f" a value that is the same for all items: functools.partial({_name(function)}, …), or itertools.repeat"
            )
        if inspect.isgenerator(each) and inspect.getgeneratorstate(each) == inspect.GEN_CLOSED:
            raise ValueError(
                f"the generator {each.__name__} was read to its end before: make a list of it, and use that"
            )
    if sequences and type(function) is FunctionType and not _takes(function, len(sequences), {}):
        try:
            signature_of(function, follow_wrapped=False).bind(*sequences)
        except TypeError as error:
            does_not = f"{_name(function)}(), which does not take that: {error}"
            many = "1 sequence" if len(sequences) == 1 else f"{len(sequences)} sequences"
            own = [name for name in rules if name in signature_of(function, follow_wrapped=False).parameters]
            remedy = f"; for all items it is functools.partial({_name(function)}, {own[0]}=…)" if own else ""
            raise TypeError(f"map has {many}, one for each argument of {does_not}{remedy}") from None


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or shown(function, 40)
