"""The magics of ``mec.activate()``: ``%px``, ``%%px``, ``%autopx``, ``%pxresult``, ``%pxconfig``, ``%pxsession``.

Names and options are those of ipyparallel.  If another package has registered these names, an error refuses ours and
gives advice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython import get_ipython
from IPython.core.error import UsageError
from IPython.core.magic import no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments

from ..client import MultiEngineClient
from ..client.adapters import offer_magics
from ..client.commands import PendingResult, show_entries
from .arguments import check_variable, parse_line
from .tracebacks import cell_place, short_errors

LINE = ("px", "autopx", "pxresult", "pxconfig", "pxsession", "result")
CELL = ("px",)


def offer_activation() -> None:
    """Give the client the function that ``mec.activate`` calls."""
    offer_magics(activate)


def activate(client: MultiEngineClient, suffix: str, force: bool) -> None:
    """Register the magics for this client.  Raises RuntimeError if another package has these names."""
    shell: Any = get_ipython()
    if shell is None:
        raise RuntimeError("activate() registers magics, and this is plain Python: use it in IPython or Jupyter")
    magics = shell.magics_manager.magics
    taken = [f"%{name}{suffix}" for name in LINE if _is_others(magics["line"].get(name + suffix))]
    taken += [f"%%{name}{suffix}" for name in CELL if _is_others(magics["cell"].get(name + suffix))]
    if taken and not force:
        raise RuntimeError(
            f"{', '.join(taken)} belong to another package (ipyparallel?) here: "
            "mec.activate(suffix='_farm') gives ours other names, mec.activate(force=True) takes these over"
        )
    px = Px(shell, client, suffix)
    lines: dict[str, Callable[[str], Any]] = {
        "px": px.line,
        "autopx": px.autopx,
        "pxresult": px.result,
        "pxconfig": px.config,
        "pxsession": px.session,
        "result": px.result,
    }
    for name, magic in lines.items():
        shell.register_magic_function(magic, "line", name + suffix)
    shell.register_magic_function(px.cell, "cell", "px" + suffix)
    print(f"%px{suffix}, %%px{suffix}, %autopx{suffix}, %pxresult{suffix}: engines of farm {client.farm!r}")


def _is_others(magic: Any) -> bool:
    if magic is None:
        return False
    module = getattr(magic, "__module__", "") or type(getattr(magic, "__self__", None)).__module__
    return not module.startswith(f"{__name__.partition('.')[0]}.")


def px_arguments(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for targets and waiting to a magic."""
    for decorate in reversed(
        (
            argument("-t", "--targets", metavar="IDS", help="engines: 0, 0,2 or all"),
            argument("-b", "--block", dest="block", action="store_const", const=True, help="wait"),
            argument("-a", "--noblock", dest="block", action="store_const", const=False, help="do not wait"),
        )
    ):
        magic = decorate(magic)
    return magic


class Px:
    """The magics of one client."""

    def __init__(self, shell: Any, client: MultiEngineClient, suffix: str) -> None:
        self._shell = shell
        self._client = client
        self._suffix = suffix
        self._last: PendingResult | None = None

    def line(self, line: str) -> Any:
        """``%px code``: run the line on the engines."""
        with short_errors():
            return self._run(line, None, None)

    @magic_arguments()
    @px_arguments
    @argument("--local", action="store_true", help="run the cell here too, after sending it")
    @argument("-o", "--out", metavar="VAR", help="bind the result to this name")
    def cell(self, line: str, cell: str) -> Any:
        """``%%px``: run the cell on the engines."""
        given = parse_line(self.cell, "%%px", line)
        check_variable(given.out)
        with short_errors():
            if not given.local:
                return self._run(cell, given.targets, given.block, given.out)
            pending = self._send(cell, given.targets)
            self._shell.run_cell(cell)
            return self._show(pending, self._blocks(given.block), given.out)

    def autopx(self, line: str) -> None:
        """``%autopx``: send every cell to the engines from now on; a second ``%autopx`` ends that."""
        transforms = self._shell.input_transformers_cleanup
        if self._to_engines in transforms:
            transforms.remove(self._to_engines)
            print(f"%autopx{self._suffix} disabled: cells run here")
        else:
            transforms.append(self._to_engines)
            print(f"%autopx{self._suffix} enabled: cells run on the engines; %autopx{self._suffix} again ends that")

    @magic_arguments()
    @argument("command", nargs="?", type=int, metavar="N", help="the number of a command, as in In [N]")
    @argument("-t", "--targets", metavar="IDS", help="engines: 0, 0,2 or all")
    @argument("-o", "--out", metavar="VAR", help="bind the result to this name")
    def result(self, line: str) -> Any:
        """``%pxresult``: wait for the last command, and show its result; ``%pxresult 3``: that of the third one."""
        given = parse_line(self.result, "%pxresult", line)
        check_variable(given.out)
        with short_errors():
            if self._last is not None and given.targets is None and given.command is None:
                return self._show(self._last, True, given.out)
            found = self._client.get_result(given.command, targets=_targets(given.targets), block=True)
            if given.out:
                self._shell.user_ns[given.out] = found
            show_entries(found)
            return None

    @magic_arguments()
    @px_arguments
    def config(self, line: str) -> None:
        """``%pxconfig``: set the client's `targets` and `block`."""
        given = parse_line(self.config, "%pxconfig", line)
        if given.targets is not None:
            self._client.targets = _targets(given.targets)
        if given.block is not None:
            self._client.block = given.block

    @no_var_expand
    @magic_arguments()
    @argument("action", choices=("save", "load", "checkpoint"), help="save names, restore them, or save a checkpoint")
    @argument("file", nargs="?", help="a file on the engines' nodes; {id} in it is the engine's id")
    @argument("-t", "--targets", metavar="IDS", help="engines: 0, 0,2 or all")
    def session(self, line: str) -> None:
        """``%pxsession save|load FILE``: save the engines' names to files, or restore them.

        ``%pxsession checkpoint``: save the engines' state for their replacements.
        """
        # IPython would put the builtin `id` into the file's name.
        given = parse_line(self.session, "%pxsession", self._shell.var_expand(line.replace("{id}", "{{id}}")))
        if (given.file is None) != (given.action == "checkpoint"):
            raise UsageError("give `save FILE`, `load FILE` or `checkpoint`")
        targets = _targets(given.targets)
        with short_errors():
            ids = self._client.ids_of(targets)
            if given.action == "checkpoint":
                found = self._client.checkpoint(ids, block=True)
            elif given.action == "save":
                found = self._client.dump_session(given.file, ids, block=True)
            else:
                found = self._client.load_session(given.file, ids, block=True)
            for engine, left_out in zip(ids, found, strict=True):
                for name, reason in left_out.items():
                    print(f"[{engine}] without {name}: {reason}")

    # -- helpers

    def _to_engines(self, lines: list[str]) -> list[str]:
        first = lines[0].lstrip() if lines else ""
        if not first or first.startswith(("%%", *(f"%{name}{self._suffix}" for name in LINE))):
            return lines
        return [f"%%px{self._suffix}\n", *lines]

    def _blocks(self, block: bool | None) -> bool:
        return self._client.block if block is None else block

    def _send(self, code: str, targets: str | None) -> PendingResult:
        place = cell_place(self._shell, code)
        pending: PendingResult = self._client.execute_cell(code, place, _targets(targets), False)
        self._last = pending
        return pending

    def _run(self, code: str, targets: str | None, block: bool | None, out: str | None = None) -> Any:
        return self._show(self._send(code, targets), self._blocks(block), out)

    def _show(self, pending: PendingResult, block: bool, out: str | None) -> Any:
        if out:
            self._shell.user_ns[out] = pending
        if not block:
            return None if out else pending
        # The output before an error is shown above the error.
        pending.stream()
        pending.get_result()
        return None


def _targets(text: str | None) -> Any:
    """Parse ``0``, ``0,2`` or ``all``; None means the client's own targets."""
    if text is None or text == "all":
        return text
    try:
        ids = [int(part) for part in text.strip("[]()").split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--targets {text}: engine ids, like 0 or 0,2, or all") from None
    return ids
