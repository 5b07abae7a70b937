"""IPython shells for tests of magics: a shell in this process, with its output."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config


class Cell:
    """The outcome of a cell: `value` of its last line, its output, and its `error`."""

    def __init__(self, result: Any, shown: Any) -> None:
        self.value = result.result
        self.error: BaseException | None = result.error_before_exec or result.error_in_exec
        self.out: str = shown.stdout
        self.err: str = shown.stderr
        self.outputs: list[Any] = shown.outputs

    @property
    def shown(self) -> str:
        return self.out + self.err


class Shell:
    """An IPython shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell: Any = shell

    def run(self, code: str) -> Cell:
        """Run a cell, whatever comes of it."""
        with capture_output() as shown:
            result = self.shell.run_cell(code, store_history=False)
        return Cell(result, shown)

    def ok(self, code: str) -> Cell:
        """Run a cell that must not fail."""
        cell = self.run(code)
        assert cell.error is None, f"{code}\n{cell.shown}"
        return cell

    def fails(self, code: str, kind: type[BaseException], match: str | None = None) -> Cell:
        """Run a cell that must fail so, and show that."""
        cell = self.run(code)
        with pytest.raises(kind, match=match):
            raise cell.error or AssertionError(f"it did not fail:\n{code}\n{cell.shown}")
        return cell

    def __getitem__(self, name: str) -> Any:
        return self.shell.user_ns[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.shell.user_ns[name] = value

    def completions(self, line: str) -> list[str]:
        """Return Tab's completions at the end of the line."""
        with provisionalcompleter():
            return [offer.text for offer in self.shell.Completer.completions(line, len(line))]


@contextmanager
def shell_with_magics() -> Iterator[Shell]:
    """A shell with our extension loaded."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.cache_size = 0
    shell = InteractiveShell.instance(config=config)
    try:
        mine = Shell(shell)
        mine.ok("%load_ext ipytaskfarm")
        yield mine
        mine.run("%unload_ext ipytaskfarm")
    finally:
        atexit.unregister(shell.atexit_operations)
        shell.atexit_operations()
        shell.restore_sys_module_state()  # or its namespace stays the __main__ of all tests that follow
        InteractiveShell.clear_instance()
