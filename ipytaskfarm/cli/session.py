"""``ipytaskfarm session``: saves the names of engines to files, and restores them."""

from __future__ import annotations

from typing import Any

from traitlets import Unicode

from ipytaskfarm.cli.application import OK, Command, UsageError, flag, unknown_action
from ipytaskfarm.cli.printing import safe
from ipytaskfarm.core.parsing import parse_ids

ACTIONS = ("save", "load", "checkpoint")


class SessionFiles(Command):
    """``ipytaskfarm session``"""

    name = "session"
    description = """
Saves the names of engines to files on their nodes, or restores names from such files. A checkpoint saves them in the
farm, and a replacement of the engine starts with them. Names that cannot travel (locks, sockets, open files) are left
out, and listed with the reason. In FILE, {id} stands for the engine's id.
"""
    arguments = "save FILE | load FILE | checkpoint"
    examples = """
        ipytaskfarm session save ~/work-{id}.session
        ipytaskfarm session load ~/work-0.session --engines 1
        ipytaskfarm session checkpoint
    """
    engines = flag("IDS", Unicode("", help="the engines, such as 0 or 0-2,5 (default: all)"))

    def carry_out(self) -> int:
        from ipytaskfarm.client import MultiEngineClient

        match self.extra_args:
            case ["save" | "load" as action, path]:
                pass
            case ["checkpoint" as action]:
                path = ""
            case [other, *_] if other not in ACTIONS:
                raise unknown_action(other, ACTIONS)
            case _:
                raise UsageError("give `save FILE`, `load FILE` or `checkpoint`")
        try:
            targets: Any = parse_ids([self.engines], "engine") if self.engines else "all"
        except ValueError as error:
            raise UsageError(f"--engines: {error}") from None
        with MultiEngineClient(self.farm) as mec:
            ids = mec.ids_of(targets)
            if action == "checkpoint":
                found = mec.checkpoint(ids, block=True)
            else:
                found = (mec.dump_session if action == "save" else mec.load_session)(path, ids, block=True)
        done = {"save": "saved to ", "load": "loaded from ", "checkpoint": "saved for its replacements"}[action]
        for engine, left_out in zip(ids, found, strict=True):
            print(f"engine {engine}: {done}{path.replace('{id}', str(engine))}")
            for name, reason in left_out.items():
                print(f"  without {safe(name)}: {safe(reason)}")
        return OK
