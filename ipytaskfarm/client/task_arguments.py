"""The work of a task as users write it: checks of code, functions, arguments and names, the errors of calls, and code
that is run here.

A check takes a value and returns it as the task stores it.  The checks of rules are in `rules`.
"""

from __future__ import annotations

import builtins
import linecache
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from ..core.arguments import wrong
from ..core.text import did_you_mean, exactly, shown
from ..system.user_code import tell_user
from .old_names import ARGUMENTS


def check_expression(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong("expression", "a str of code", value)
    return exactly(value)


def check_function(value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise not_a_function("function", "a callable", value)
    return value  # type: ignore[no-any-return]


def check_pull(value: Any) -> tuple[str, ...] | list[str]:
    if value is None:
        return ()
    if isinstance(value, str):
        several = [each.strip() for each in value.split(",")]
        if len(several) > 1 and all(each.isidentifier() for each in several):
            raise ValueError(f"several names are a list: pull={several}, not pull={shown(value)}")
        return (exactly(value),)
    if not isinstance(value, (list, tuple)):
        raise wrong("pull", "a name, or a list or tuple of names", value)
    for name in value:
        if not isinstance(name, str):
            raise wrong("pull", "a name, or a list or tuple of names", name)
    return value if all(type(name) is str for name in value) else tuple(map(exactly, value))


def check_push(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    return _names("push", value)


def check_kwargs(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    return _names("kwargs", value)


def _names(attribute: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong(attribute, "a dict of names and values", value)
    for name in value:
        if not isinstance(name, str):
            raise wrong(attribute, "a dict whose keys are names", name)
    return value if isinstance(value, dict) else dict(value)


def check_args(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        error = wrong("args", "a list or tuple of arguments", value)
        raise TypeError(f"{error}; one argument is args=({shown(value, 40)},)")
    return tuple(value)


# --------------------------------------------------------------------------------------------------
# Errors of calls


def not_a_function(what: str, expected: str, value: object, right: str = "Task(f, args=(2,))") -> TypeError:
    """Return the error for a value in place of a function; often the user has called the function.

    right: how the call is written correctly.
    """
    return TypeError(f"{wrong(what, expected, value)}; give the function itself, {right}, not what it returns")


def name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or shown(function)


def misplaced_arguments(call: str, function: Any, misplaced: tuple[Any, ...]) -> TypeError:
    """Return the error for arguments of a function after the function itself, where `call` takes only the function."""
    if len(misplaced) == 1 and type(misplaced[0]) is tuple:
        misplaced = misplaced[0] or misplaced  # as Thread(target=f, args=(x,)) takes them
    inside = ", ".join(shown(value, 40) for value in misplaced)
    comma = "," if len(misplaced) == 1 else ""
    parentheses = ")" * call.count("(")
    text = f"{call}({name_of(function)}, args=({inside}{comma})){parentheses}"
    return TypeError(f"the arguments of a function go into args: {text}")


def unknown_argument(kind: str, is_code: bool, attributes: frozenset[str], name: str, value: object) -> TypeError:
    """Return the error for an unknown keyword of this kind of task, with advice what the user may have meant."""
    if is_code and name in ("args", "kwargs"):
        remedy = "; code takes values by name, push={'x': 1}: args and kwargs are for functions"
    elif not is_code and name in ("pull", "push"):
        remedy = "; the result of a function is what it returns: pull and push are for code, Task('a = 1', pull='a')"
    elif name in ARGUMENTS:
        remedy = f"; instead: {ARGUMENTS[name]}"
    elif near := did_you_mean(name, attributes):
        remedy = near
    elif is_code:
        remedy = f"; a name for the code is push={{{name!r}: {shown(value, 40)}}}"
    else:
        remedy = f"; an argument of the function goes into kwargs={{{name!r}: {shown(value, 40)}}}"
    kind = "Task" if kind in ("StringTask", "CallTask") else kind  # what the user has written
    return TypeError(f"a {kind} has no argument {name!r}{remedy}")


def not_a_task(thing: object) -> TypeError:
    """Return the error for an object in place of a task, with advice how it is made one."""
    expected = "a Task, a callable or an object with execute() is needed"
    if isinstance(thing, str):
        hint = f"; code goes into a Task: Task({shown(thing, 40)})"
    elif isinstance(thing, (list, tuple, set, Generator)):
        hint = "; submit one after the other, [tc.run(task) for task in tasks], or together, as the tasks of a job"
    else:
        hint = f": {shown(thing, 40)}; give the function itself, not what it returns: submit(f, 2), Task(f, args=(2,))"
    return TypeError(f"{expected}, not {type(thing).__name__}{hint}")


_RULES_OF_OTHERS = ("attempts", "error_time", "defer_time", "defer_max", "max_parallel", "wall_time", "locality")
_told_of: set[type] = set()


def note_rules_of(thing: object) -> None:
    """Tell of rules on the class of an object with ``execute()``, as in core4 and bndl: its task does not get them."""
    kind = type(thing)
    named = [name for name in _RULES_OF_OTHERS if hasattr(kind, name)]
    if named and kind not in _told_of:
        _told_of.add(kind)
        say = "; ".join(f"{name}: {ARGUMENTS[name]}" for name in named if name in ARGUMENTS)
        known = [f"{name}=…" for name in named if name not in ARGUMENTS]
        task = f"Task({kind.__name__}().execute, {', '.join(known)})" if known else ""
        remedy = "; ".join(filter(None, [task, say]))
        text = f"the task of a {kind.__name__} does not get its {', '.join(named)}; instead: {remedy}"
        tell_user(text)


def run_code(code: str, push: Mapping[str, Any], pull: Sequence[str], filename: str) -> dict[str, Any]:
    """Run code in the namespace of the notebook, or in that of ``__main__``; return the values of the names to pull.

    Tracebacks name `filename`, and show its lines.
    """
    # While Jupyter runs a cell, get_ipython is a builtin; in plain Python the namespace is __main__.
    find_shell = getattr(builtins, "get_ipython", None)
    shell = find_shell() if find_shell is not None else None
    if shell is not None:
        namespace: dict[str, Any] = shell.user_ns
        code = shell.transform_cell(code)
    else:
        import __main__

        namespace = __main__.__dict__
    namespace.update(push)
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    exec(compile(code, filename, "exec"), namespace)
    missing = [name for name in pull if name not in namespace]
    if missing:
        raise NameError(f"name {missing[0]!r} is not defined")
    return {name: namespace[name] for name in pull}
