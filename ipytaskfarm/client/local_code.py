"""Run a task's code in the caller's own kernel, for debugging."""

from __future__ import annotations

import builtins
import linecache
from collections.abc import Mapping, Sequence
from typing import Any


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
