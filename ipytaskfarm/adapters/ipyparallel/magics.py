"""The magics of a direct view: ``%px``, ``%%px``, ``%autopx``, ``%pxresult``, ``%pxconfig``; options: ipyparallel's."""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from IPython import get_ipython
from IPython.core.error import UsageError
from IPython.core.magic import no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from ipytaskfarm.adapters.ipyparallel.async_results import AsyncResult
from ipytaskfarm.adapters.ipyparallel.errors import AlreadyDisplayedError, CompositeError
from ipytaskfarm.adapters.ipyparallel.interfaces import ExecutesCode

PROGRESS_AFTER_S = 2.0
TYPE = "type"


def activate(view: ExecutesCode, suffix: str = "") -> None:
    """Register the magics for a view.  Raises RuntimeError outside IPython."""
    shell: Any = get_ipython()
    if shell is None:
        raise RuntimeError("The IPython parallel magics (px, etc.) only work within IPython.")
    magics = ViewMagics(shell, view, suffix)
    lines: dict[str, Callable[[str], Any]] = {
        f"px{suffix}": magics.px,
        f"autopx{suffix}": magics.autopx,
        f"pxresult{suffix}": magics.result,
        f"pxconfig{suffix}": magics.pxconfig,
    }
    if not suffix:
        lines["result"] = magics.result
    for name, magic in lines.items():
        shell.register_magic_function(magic, "line", name)
    shell.register_magic_function(magics.cell_px, "cell", f"px{suffix}")


def _decorated(magic: Callable[..., Any], *options: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in reversed(options):
        magic = decorate(magic)
    return magic


def execution_arguments(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about where and how code is executed."""
    return _decorated(
        magic,
        argument("-b", "--block", action="store_const", const=True, dest="block", help="wait"),
        argument("-a", "--noblock", action="store_const", const=False, dest="block", help="do not wait"),
        argument("--stream", action="store_const", const=True, dest="stream", help="show output as it arrives"),
        argument("--no-stream", action="store_const", const=False, dest="stream", help="show output at the end"),
        argument("-t", "--targets", type=str, help="the engines: 0, [0,2], a slice such as ::2, or all"),
        argument("--verbose", action="store_const", const=True, dest="verbose", help="print a line for each execution"),
        argument("--no-verbose", action="store_const", const=False, dest="verbose", help="print no such lines"),
        argument(
            "--progress-after", dest="progress_after", type=float, help="seconds until progress is shown; -1: never"
        ),
        argument(
            "--signal-on-interrupt", dest="signal", type=str, help="what Ctrl-C sends to the engines: SIGINT, 9, 0 …"
        ),
    )


def output_arguments(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about output."""
    groups = ("engine", "order", "type")
    return _decorated(
        magic,
        argument("-r", action="store_const", dest="groupby", const="order", help="the same as --group-outputs=order"),
        argument("-e", action="store_const", dest="groupby", const="engine", help="the same as --group-outputs=engine"),
        argument("--group-outputs", dest="groupby", choices=groups, help="how output is grouped"),
        argument("-o", "--out", dest="save_name", type=str, help="bind the AsyncResult to this name"),
    )


class ViewMagics:
    """The magics of one view."""

    def __init__(self, shell: Any, view: ExecutesCode, suffix: str) -> None:
        self.shell = shell
        self.view = view
        self.suffix = suffix
        self.verbose = False
        self.stream_output = True
        self.progress_after_s = PROGRESS_AFTER_S
        self.signal_on_interrupt: int | str = "SIGINT"
        self.last_result: AsyncResult | None = None
        self._run_cell: Callable[..., Any] | None = None

    # -- the magics

    @no_var_expand
    def px(self, line: str = "") -> AsyncResult | None:
        """``%px code``: run the line on the engines."""
        return self.execute(line)

    @magic_arguments()
    @execution_arguments
    @output_arguments
    @argument("--local", action="store_true", help="run the cell here too")
    def cell_px(self, line: str = "", cell: str = "") -> AsyncResult | None:
        """``%%px``: run the cell on the engines."""
        given = parse_argstring(self.cell_px, line)
        blocks = self.view.block if given.block is None else given.block
        targets = self.view.targets
        try:
            if given.targets:
                self.view.targets = self._targets(given.targets)
            result = self.execute(
                cell,
                block=False if given.local else blocks,
                groupby=given.groupby or TYPE,
                save_name=given.save_name,
                stream=given.stream,
                progress_after_s=given.progress_after,
                signal_on_interrupt=_signal(given.signal),
                verbose=given.verbose,
            )
        finally:
            self.view.targets = targets
        if given.local:
            self.shell.run_cell(cell)
            if blocks and result is not None:
                result.get()
                result.display_outputs(given.groupby or TYPE)
        return None if blocks else result

    @magic_arguments()
    @output_arguments
    def result(self, line: str = "") -> None:
        """``%pxresult``: wait for the last ``%px``, and show its output."""
        given = parse_argstring(self.result, line)
        if self.last_result is None:
            raise UsageError("%pxresult recalls last %px result, which has not yet been used.")
        if given.save_name:
            self.shell.user_ns[given.save_name] = self.last_result
            return
        self.last_result.get()
        self.last_result.display_outputs(given.groupby or TYPE)

    @magic_arguments()
    @execution_arguments
    def pxconfig(self, line: str = "") -> None:
        """``%pxconfig``: set the engines and the options of later ``%px``."""
        given = parse_argstring(self.pxconfig, line)
        if given.targets:
            self.view.targets = self._targets(given.targets)
        if given.block is not None:
            self.view.block = given.block
        if given.verbose is not None:
            self.verbose = given.verbose
        if given.stream is not None:
            self.stream_output = given.stream
        if given.signal is not None:
            self.signal_on_interrupt = _signal(given.signal) or 0
        if given.progress_after is not None:
            self.progress_after_s = given.progress_after

    def autopx(self, line: str = "") -> None:
        """``%autopx``: run every cell on the engines from now on; a second ``%autopx`` ends that."""
        if self._run_cell is None:
            self._run_cell = self.shell.run_cell
            self._run_nodes = self.shell.run_ast_nodes
            self.shell.run_cell = self._take_cell
            self.shell.run_ast_nodes = self._run_on_engines
            print("%autopx enabled")
        else:
            self.shell.run_cell, self.shell.run_ast_nodes = self._run_cell, self._run_nodes
            self._run_cell = None
            print("%autopx disabled")

    def _take_cell(self, raw_cell: str, *args: Any, **kwargs: Any) -> Any:
        self._cell = raw_cell
        assert self._run_cell is not None
        return self._run_cell(raw_cell, *args, **kwargs)

    async def _run_on_engines(self, *args: Any, **kwargs: Any) -> bool:
        """Run the present cell on the engines, in the place of its nodes; return whether it failed."""
        if self._cell.lstrip().startswith(f"%autopx{self.suffix}"):
            self.autopx()
            return False
        try:
            self.execute(self._cell)
        except Exception:
            self.shell.showtraceback()
            return True
        return False

    # -- execution

    def execute(
        self,
        code: str,
        block: bool | None = None,
        groupby: str = TYPE,
        save_name: str | None = None,
        stream: bool | None = None,
        progress_after_s: float | None = None,
        signal_on_interrupt: int | str | None = None,
        verbose: bool | None = None,
    ) -> AsyncResult | None:
        """Run code on the engines of the view; return the result if it is not waited for.

        The arguments are the options of ``%%px``; None: as `pxconfig` has set them.
        """
        blocks = self.view.block if block is None else block
        if self.verbose if verbose is None else verbose:
            print(f"{'Parallel' if blocks else 'Async parallel'} execution on engine(s): {_shown(self.view.targets)}")
        result: AsyncResult = self.view.execute(code, silent=False, block=False)
        result._fname = "%px"
        self.last_result = result
        if save_name:
            self.shell.user_ns[save_name] = result
        if not blocks:
            return result
        streams = self.stream_output if stream is None else stream
        after_s = self.progress_after_s if progress_after_s is None else progress_after_s
        number = self.signal_on_interrupt if signal_on_interrupt is None else signal_on_interrupt
        try:
            self._wait(result, streams, after_s)
        except KeyboardInterrupt:
            text = f"Received Keyboard Interrupt. Sending signal {number} to engines..."
            print(text, file=sys.stderr)
            self.view.client.send_signal(number, self.view.targets)
        finally:
            if not streams and result.wait(1):
                result.display_outputs(groupby)
        return None

    def _wait(self, result: AsyncResult, streams: bool, after_s: float) -> None:
        with result.stream_output() if streams else contextlib.nullcontext():
            if not result.wait(after_s) and after_s >= 0:
                result.wait_interactive()
        try:
            result.get()
        except CompositeError as error:
            if streams:
                raise AlreadyDisplayedError(error) from None
            raise

    def _targets(self, text: str) -> Any:
        """Read ``0``, ``[0,2]``, ``0,2``, a slice of the ids, or ``all``."""
        try:
            if ":" in text:
                bounds = [int(part) if part.strip() else None for part in text.split(":")]
                return self.view.client.ids[slice(*bounds)]
            if "all" in text:
                return "all"
            found = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError):
            raise UsageError(f"--targets {text}: engine ids, like 0 or [0,2], a slice like ::2, or all") from None
        return list(found) if isinstance(found, tuple) else found


def _signal(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdigit() else text


def _shown(targets: Any) -> str:
    if isinstance(targets, list) and len(targets) > 10:
        return f"{str(targets[:4])[:-1]}, ..., {str(targets[-4:])[1:]}"
    return str(targets)
