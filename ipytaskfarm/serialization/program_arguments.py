"""The arguments of the program, for by-value modules that read them while they are imported.

``args = parser.parse_args()`` at the top of a settings module is common, and an engine, which imports the module anew,
has no arguments.  Such a module gets those of the program for its import, as in a process that multiprocessing or loky
has started.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from .module_state import callers_at_import

PARSING = frozenset(("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args"))
"""Methods of argparse that read ``sys.argv`` if they are given nothing."""
_READING = PARSING | {"argv", "docopt", "parse_args_into_dataclasses"}
_READS = re.compile(rb"\b(?:%s)\b" % b"|".join(name.encode() for name in sorted(_READING)))


def program_arguments() -> tuple[str, ...]:
    """Return ``sys.argv``; () if there are no arguments, or if they are a kernel's, which are nothing to its cells."""
    return tuple(sys.argv) if len(sys.argv) > 1 and "__file__" in vars(sys.modules["__main__"]) else ()


def readers_of_arguments(sources: Mapping[str, bytes]) -> set[str]:
    """Return the modules that read the program's arguments while they are imported.

    sources: module -> its source, of all modules of a bundle."""
    return callers_at_import(_READING, sources) if any(map(_READS.search, sources.values())) else set()


@contextlib.contextmanager
def as_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Let the process have these arguments; () for those that it has."""
    before = sys.argv
    if arguments:
        sys.argv = list(arguments)
    try:
        yield
    finally:
        sys.argv = before
