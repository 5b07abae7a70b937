"""What an engine does when a module that it has imported by name was edited or upgraded, see `edited_modules`.

An engine whose namespace is empty gives its runs back and is replaced: the next one imports everything anew. One that
holds names for somebody stays, because nobody expects an edit to cost the session. It takes its modules out of
``sys.modules``, so that the next import loads them anew, forgets the functions and classes that were unpacked with
them, and binds the names that stand for a module, or for a function or class of one, to the new ones. Of compiled
modules and distributions, which cannot be loaded twice, it says that it keeps the old ones.
"""

from __future__ import annotations

import importlib
import sys
import time
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.text import text_of
from ..serialization.distributions import version_of
from ..serialization.known_classes import forget_built
from ..serialization.modules import take_out_own
from .edited_modules import EDITED, PAUSE_S, Edited

if TYPE_CHECKING:
    from .map_chunks import Callables
    from .namespace import Namespace

CLOCKS_S = 2.0
"""How far the clocks of clients and engines may be apart: a task that was submitted later before an edit gets the new
version."""
_NAMED_MAX = 5


class Edits:
    """Looks for edits before a run or a command begins."""

    def __init__(self, namespace: Namespace, callables: Callables) -> None:
        self._namespace = namespace
        self._callables = callables
        self._unchanged_s = 0.0
        """When (wall clock) a look has found no edit at the latest."""
        self._is_edited = False
        """Whether the last look has found edits, before a run that goes on with the old version."""
        self._upgraded: list[Edited] = []
        """The modules of distributions that were replaced: a look finds them once."""
        self.notices: list[str] = []
        """What is to be said of edits."""
        self.is_due = False
        """Whether a look is due before the next run. It is found out for each slice: all runs of a slice were on this
        engine when the slice began, and to ask for each of them costs a percent of the smallest ones."""

    def begin_slice(self) -> None:
        """Find out whether a look is due before the next run."""
        now_s = time.perf_counter()
        edited = EDITED
        if now_s >= edited.due_s or (now_s >= edited.after_pause_s and now_s - edited.ended_s >= PAUSE_S):
            self.is_due = True

    def reason_to_leave(self, submitted_s: float) -> str:
        """Look for edits. Return why another engine has to take this one's place, or "".

        submitted_s: when (wall clock) the task was submitted. What was submitted before an edit goes on with the
        version that this engine has: the tasks of a long job all run the same one.
        """
        goes_on = submitted_s < self._unchanged_s - CLOCKS_S
        if self._is_edited and goes_on:
            return ""
        began_s = time.time()
        found = self._look()
        self._is_edited = bool(found) and goes_on
        if self._is_edited:
            return ""  # and a look stays due: the next run may have been submitted later
        self.is_due = False
        if not found and not EDITED.kept_old:
            self._unchanged_s = began_s
            return ""
        self._upgraded.clear()
        # An engine that has run nothing yet stays: a module that rewrites itself would keep the farm from all work.
        if not self._namespace.user_keys() and (
            EDITED.ended_s or not all(each.can_be_imported_again for each in (*found, *EDITED.kept_old))
        ):
            found += EDITED.kept_old
            return f"it has imported {_named(found)}, which {_was(found)} since then"
        if found:
            self._take_up(found)
        return ""

    def before_command(self) -> None:
        """Look for edits before a command, which no other engine can take."""
        found = self._look() if EDITED.own or EDITED.installed else []
        if found:
            self._upgraded.clear()
            self._take_up(found)

    def _look(self) -> list[Edited]:
        found = EDITED.look()
        known = {each.file for each in found}
        found += (each for each in self._upgraded if each.file not in known)
        self._upgraded = [each for each in found if not each.is_own]
        return found

    def tell(self) -> None:
        """Write what is to be said of edits into the output of the run or command that begins."""
        for text in self.take_notices():
            print(f"ipytaskfarm: {text}", file=sys.stderr)

    def take_notices(self) -> list[str]:
        """Return what is to be said of edits, for a command that has no output of its own."""
        taken = self.notices[:]
        self.notices.clear()
        return taken

    def _take_up(self, found: list[Edited]) -> None:
        """Import modules anew in this process, as far as that is possible."""
        fixed = [each for each in found if not each.can_be_imported_again]
        if fixed:
            EDITED.forget(fixed)
            EDITED.kept_old += fixed
            names = _listed(self._namespace.user_keys())
            self.notices.append(
                f"{_named(fixed)} {_was(fixed)} after this engine had imported it. The engine goes on with the old "
                f"version, because it holds names that it would lose ({names}): when they are cleared (mec.reset()), "
                "the next task gets an engine with the new one"
            )
        if len(fixed) < len(found):
            self.notices += self._import_anew([each for each in found if each not in fixed])

    def _import_anew(self, found: list[Edited]) -> Iterator[str]:
        """Let the next import load a person's own modules anew, also those that use the edited ones.

        Yields what is to be said of it.
        """
        files = {each.file for each in found}
        again = {
            file: known.name
            for file, known in EDITED.own.items()
            if Edited(known.name, file, True).can_be_imported_again and (file in files or not known.came)
        }
        own = {*again.values()}
        old = take_out_own(own)
        for file in again:
            del EDITED.own[file]
        self._callables.clear()
        forget_built()
        names, failed = self._namespace.names, ""
        kept = []
        for name in self._namespace.user_keys():
            value = names[name]
            try:
                now = _member_now(value, old)
            except BaseException as error:  # the edited module may raise anything
                now, failed = value, failed or f"{type(error).__name__}: {text_of(error)}"
            if now is not None and now is not value:
                names[name] = now
                if name in self._namespace.sticky:
                    self._namespace.sticky[name] = now
            elif now is value or type(value).__module__ in own or _module_of(value) in own:
                kept.append(name)
        if failed:
            yield f"{_named(found)} {_was(found)}, and cannot be imported anew: {failed}"
        if kept:
            verb = "is" if len(kept) == 1 else "are"
            yield (
                f"{_named(found)} {_was(found)} and is imported anew; {_listed(kept)} on this engine {verb} of "
                "what was imported before: make it again"
            )


def differs_from(content: Sequence[tuple[str, str]]) -> str:
    """Return which module here is not the one whose files have this content, for people; "" if all are."""
    if EDITED.kept_old:  # any result may have come from it
        return f"its engine goes on with an old version of {_named(EDITED.kept_old)}"
    edited = {each.name.partition(".")[0] for each in EDITED.edited()}
    for top, digest in content:
        version = version_of(top)
        if version is None and top not in sys.modules:
            continue  # the run has not used it
        if top in edited or version is None or version.content != digest:
            return f"its engine had another version of module {top}, which was edited after the task was submitted"
    return ""


def _member_now(value: Any, old: dict[str, types.ModuleType]) -> Any:
    """Return what an import gives now for a module, or for a function or class of a module; None for other values."""
    if isinstance(value, types.ModuleType):
        return importlib.import_module(value.__name__) if old.get(value.__name__) is value else None
    module = old.get(_module_of(value))
    if module is None or not isinstance(value, types.FunctionType | type):
        return None
    found: Any = getattr(module, value.__qualname__, None)
    return getattr(importlib.import_module(module.__name__), value.__qualname__, value) if found is value else None


def _module_of(value: Any) -> str:
    name = getattr(value, "__module__", None) if isinstance(value, types.FunctionType | type) else None
    return name if isinstance(name, str) else ""


def _named(found: Iterable[Edited]) -> str:
    texts = [f"module {each.name} ({each.file})" for each in found]
    more = len(texts) - 2
    return " and ".join(texts[:2]) + (f" and {more} more" if more > 0 else "")


def _was(found: list[Edited]) -> str:
    return "was edited" if all(each.is_own for each in found) else "was replaced by another version"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED_MAX]) + (" …" if len(names) > _NAMED_MAX else "")
