"""Read and delete what the farm keeps for engines to come: sticky entries, and the commands for replacements."""

from __future__ import annotations

from collections.abc import Iterable

from ..core import messages
from ..core.arguments import check_names
from ..core.messages import tables
from ..display.tables import Table
from .session import Session


class StickyEntries(list[tuple[str, str, str]]):
    """The (key, verb, text) of the code and names that every fresh engine gets, in that order."""

    def __repr__(self) -> str:
        return repr(Table(("key", "verb", "what"), self, nothing="nothing is sticky"))


class KeptEntries(list[tuple[int, str, str]]):
    """Commands that are kept for replacements: (engine id, text, why the command is not repeated; "": it
    is repeated).
    """

    def __repr__(self) -> str:
        return repr(Table(("engine", "what", "not done again"), self, nothing="nothing was done by hand"))


def sticky(session: Session) -> StickyEntries:
    """Return what every fresh engine runs after the farm's start-up code, in order."""
    return StickyEntries(session.ask_for(messages.ListSticky(), tables.StickyTable).rows)


def clear_sticky(session: Session, keys: str | Iterable[str] | None) -> int:
    """Delete sticky entries, all or those with these keys, and return their number."""
    question = messages.ClearSticky(None if keys is None else check_names("keys", keys))
    return session.ask_for(question, messages.NumberReply).value


def kept(session: Session) -> KeptEntries:
    """Return the commands that are kept for each engine."""
    return KeptEntries(session.ask_for(messages.ListKept(), tables.KeptTable).rows)


def clear_kept(session: Session, engines: list[int] | None) -> int:
    """Delete the kept commands of these engines, or of all, and return their number."""
    return session.ask_for(messages.ClearKept(engines), messages.NumberReply).value
