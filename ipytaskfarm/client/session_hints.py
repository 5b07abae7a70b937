"""Says why a task has failed where this session's own process would not have: the name, attribute or file is here."""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Iterator

_NO_ATTRIBUTE = re.compile(r"(?:module|type object)? ?'([\w.]+)'(?: object)? has no attribute '(\w+)'")


def hints(error: BaseException, trace: str) -> Iterator[str]:
    """Yield a sentence for what an error of a task did not find, and this session has.

    Args:
        error: the error of the task.
        trace: its traceback as text.
    """
    main = vars(sys.modules["__main__"])
    name = ""
    if isinstance(error, NameError):
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
        yield (
            f"this session has {name!r}, and a task has only the globals that the code of its function mentions as "
            "names: mention it there, or pass it as an argument"
        )


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
