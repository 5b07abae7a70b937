"""Runs code that only IPython understands (magics, ``!cmd``, ``name?``, top-level await), and shows
values and figures.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any, NamedTuple

from ..core.messages.payload import CellPlace
from .kernel import EngineShell
from .plain import is_quiet

_MAGIC = re.compile(r"get_ipython\(\)\.run_(line|cell)_magic\('([^']+)'")


class CellPlan(NamedTuple):
    """A cell in the form in which IPython will run it."""

    code: str
    transformed: str
    complaint: tuple[Any, Any, Any] | None
    """The exception that one of the user's transformations raised."""
    is_async: bool
    """Whether it has a top-level await and must be awaited in the kernel's loop."""
    place: CellPlace | None = None
    """The user's cell, which tracebacks name."""


class Cells:
    """Runs code through the shell like a notebook's cell, and raises the cell's error."""

    def __init__(self, shell: EngineShell) -> None:
        self._shell: Any = shell

    def plan(self, code: str, place: CellPlace | None = None) -> CellPlan:
        """Analyse the code without running it. Call this where nothing can be interrupted.

        place: the user's cell in which the code stands.
        """
        complaint = None
        transformed = code
        try:
            transformed = self._shell.transform_cell(code)
        except Exception:  # IPython reports it as the cell's own error
            complaint = sys.exc_info()
        self._load_magics(transformed)
        is_async = self._shell.should_run_async(code, transformed_cell=transformed, preprocessing_exc_tuple=complaint)
        return CellPlan(code, transformed, complaint, bool(is_async), place)

    def run(self, plan: CellPlan, store_history: bool = False) -> Any:
        """Run a cell without awaits, and return IPython's ExecutionResult."""
        self._set_quiet(plan)
        self._shell.compile.place = plan.place
        try:
            result = self._shell.run_cell(plan.code, store_history=store_history)
        finally:
            self._forget(store_history)
        return _checked(result)

    async def run_in_loop(self, plan: CellPlan, store_history: bool = False) -> Any:
        """Run a cell that may await. The caller holds the kernel's lock."""
        shell = self._shell
        self._set_quiet(plan)
        shell.compile.place = plan.place
        result = None
        try:
            result = await shell.run_cell_async(
                plan.code,
                store_history=store_history,
                transformed_cell=plan.transformed,
                preprocessing_exc_tuple=plan.complaint,
            )
        finally:
            shell.events.trigger("post_execute")
            shell.events.trigger("post_run_cell", result)
            self._forget(store_history)
        return _checked(result)

    def _load_magics(self, transformed: str) -> None:
        """Load the magics of the cell beforehand.

        IPython (9.18) loads some magics at their first use. If an interrupt comes then, the magic stays broken for the
        engine's whole life.
        """
        for kind, name in _MAGIC.findall(transformed):
            with contextlib.suppress(Exception):  # the cell itself will report it
                self._shell.magics_manager.find(kind, name)

    def show(self, value: object) -> None:
        """Show the value of a last expression."""
        self._shell.displayhook.show_in(value)

    def flush_figures(self) -> None:
        """Draw and close the open figures, as after a cell."""
        self._shell.events.trigger("post_execute")

    def _set_quiet(self, plan: CellPlan) -> None:
        self._shell.displayhook.quiet_task = ";" in plan.code and plan.complaint is None and is_quiet(plan.transformed)

    def _forget(self, store_history: bool) -> None:
        """Drop IPython's last result, with which IPython would keep an error, its frames and the values in them."""
        if not store_history:
            self._shell.last_execution_result = None
        self._shell.compile.place = None
        self._shell.payload_manager.clear_payload()


def _checked(result: Any) -> Any:
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        raise error
    return result
