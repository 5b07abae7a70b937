"""Says why a task has failed where this session's own process would not have: the name, attribute or file is here."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from ..serialization.pack import traceback_of
from ..system.user_code import cell_of

_NO_ATTRIBUTE = re.compile(r"(?:module|type object)? ?'([\w.]+)'(?: object)? has no attribute '(\w+)'")


_CODE = re.compile(r"<(task|cell) [0-9a-f-]+>")
"""The file name of a task's code, or of a command's."""


def hints(error: BaseException, trace: str, is_command: bool = False) -> Iterator[str]:
    """Yield a sentence for what an error of a task did not find, and this session has.

    The error has no frames but the engine's. is_command: it is that of a MultiEngineClient's command, not of a task.
    """
    main = vars(sys.modules["__main__"])
    name = ""
    if isinstance(error, NameError) and (is_command or " asks for it" not in str(error)):  # else its text says it all
        name = error.name or (re.findall(r"name '(\w+)'", str(error)) or [""])[0]
    elif isinstance(error, KeyError) and error.args and "globals()" in trace:
        name = error.args[0] if isinstance(error.args[0], str) else ""
    elif isinstance(error, ValueError) and "sys.set_int_max_str_digits" in str(error):
        here = sys.get_int_max_str_digits()
        if here == 0 or here > sys.int_info.default_max_str_digits:
            yield (
                f"the limit is {here or 'off'} here, and Python's in a task: call sys.set_int_max_str_digits in the "
                "function, or for all engines with mec.execute(…)"
            )
    elif isinstance(error, FileNotFoundError):
        yield from _of_file(error.filename)
    elif isinstance(error, AttributeError) and (found := _NO_ATTRIBUTE.search(str(error))):
        if found[1] == "__main__":
            name = found[2]
        elif (owner := _owner_with(*found.groups())) is not None:
            yield (
                f"this session's {owner} has {found[2]!r}, set after the import: set it in the function, in a module "
                "that the function imports, or on all engines with mec.execute(…)"
            )
    if name in main:
        yield f"this session has {name!r}, and " + _remedy(error, name, main[name], is_command)


def add_hints(error: BaseException, trace: str, is_command: bool = False) -> list[str]:
    """Add the sentences of `hints` to an error as notes, and return them."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # the exception's class may do anything when it is asked
        found += hints(error, trace, is_command)
    own: dict[str, Any] = object.__getattribute__(error, "__dict__")
    notes = own.get("__notes__") or []
    fresh = [each for each in found if each not in notes]  # a parent task may have added one for its child
    if fresh:
        own["__notes__"] = [*notes, *fresh]
    return found


def _remedy(error: BaseException, name: str, value: object, is_command: bool) -> str:
    """Return how code on an engine gets a name of this session."""
    frames = traceback_of(error)
    first = frames.tb_frame.f_code if frames is not None else None
    file = first.co_filename if first is not None and first.co_name == "<module>" else ""
    is_module = isinstance(value, types.ModuleType)
    pushed = f"{{{name!r}: {name}}}"
    if is_command:
        remedy = f"mec.execute({_import_of(name, value)!r})" if is_module else f"mec.push({pushed})"
        return f"engines have names of their own: {remedy}"
    is_cell = cell_of(file) is not None
    if not is_cell and not _CODE.fullmatch(file):
        return (
            "a task has only the globals that the code of its function mentions as names: mention it there, or pass it "
            "as an argument"
        )
    if is_module:
        return f"a task imports what its code uses: {_import_of(name, value)}"
    return f"a task has only what is sent with its code: {f'%%task --push {name}' if is_cell else f'push={pushed}'}"


def _import_of(name: str, module: Any) -> str:
    path = str(module.__name__)
    return f"import {path}" if name == path else f"import {path} as {name}"


def _of_file(filename: object) -> Iterator[str]:
    if isinstance(filename, str) and filename and not os.path.isabs(filename) and os.path.exists(filename):
        yield (
            f"the file exists in this session's folder, {os.getcwd()}, and tasks begin in that in which the farm was "
            "started: pass the absolute path"
        )


def _owner_with(name: str, attribute: str) -> str | None:
    """Return the name of an imported module, or of a class of one, that has the attribute here."""
    module = sys.modules.get(name)
    if module is not None:
        return name if attribute in vars(module) else None
    for each in list(sys.modules.values()):
        cls = vars(each).get(name) if isinstance(each, types.ModuleType) else None
        if isinstance(cls, type) and any(attribute in vars(base) for base in cls.__mro__):
            return name
    return None
