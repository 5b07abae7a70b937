"""The ``ipytaskfarm`` command: `main` finds the subcommand, and a traitlets application runs it.

To add a command: write a subclass of `cli.application.Command` with a description and examples, name it in
`catalog.COMMANDS`, and describe it in ``docs/commands.md`` (a test checks both).

Exit codes: 0 success, 1 failure, 2 the command line is wrong, 3 the farm's store cannot be used, 4 refused (no such
farm, one of that name runs already, wrong keys, versions that do not fit).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ipytaskfarm.cli.catalog import COMMANDS as COMMANDS

PARTS = {"controller": "ipytaskfarm.controller", "agent": "ipytaskfarm.agent"}
"""Commands that become another program, which reads its own flags."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Errors of the farm are printed, never raised."""
    _open_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in PARTS and not _asks_for_help(arguments[1:]):
        _become(PARTS[arguments[0]], arguments[1:])
    # `ipytaskfarm -n 4` is `ipytaskfarm start -n 4`.
    if arguments and arguments[0].startswith("-") and not _asks_for_help(arguments):
        arguments.insert(0, "start")
    # traitlets costs 50 ms, so it is imported only when it is needed.
    from ipytaskfarm.cli.application import run

    return run(arguments)


def _open_descriptors() -> None:
    """Open closed standard descriptors of a daemon, so that pipes to children do not get their numbers."""
    try:
        for number in range(3):
            os.fstat(number)
    except OSError:
        from ipytaskfarm.system.host import open_standard_descriptors

        open_standard_descriptors()
    # Python has no stream if the descriptor was closed.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - as long as the process
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _asks_for_help(arguments: list[str]) -> bool:
    return any(word in ("-h", "--help", "--help-all", "--version", "-V") for word in arguments)


def _become(module: str, arguments: list[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    sys.exit(main())
