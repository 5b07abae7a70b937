"""``ipytaskfarm history``: shows past events."""

from __future__ import annotations

import sys
import time
from typing import Any

from traitlets import Int, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, JsonCommand, UsageError, values
from ipytaskfarm.cli.jobs import LONG_S, ids_given, refuse_unknown, task_rows_of
from ipytaskfarm.cli.json_output import event_shape, print_json
from ipytaskfarm.core import messages
from ipytaskfarm.core.arguments import INT_MAX
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.parsing import parse_since
from ipytaskfarm.deployment.light_client import Questioner, connect
from ipytaskfarm.display.farm_tables import event_table


class History(JsonCommand):
    """``ipytaskfarm history``"""

    name = "history"
    description = """
Shows what happened to tasks, ordered by time: accepted, started, succeeded, failed with the reason, deferred. It shows
the last 100 events, or more with --last. Removed tasks have no history.
"""
    arguments = "[ID…]"
    examples = """
        ipytaskfarm history 12
        ipytaskfarm history --what failed --since 2h
        ipytaskfarm history --name fit --since 2026-11-21T10:00 --json
    """
    named = Unicode("", help="only tasks of this name").tag(config=True, metavar="NAME")
    what = Unicode("", help="only events that contain this text: started, failed, engine lost").tag(
        config=True, metavar="TEXT"
    )
    since = Unicode("", help="only events after this time: 90s, 10m, 2h or 1d ago, or 2026-11-21T10:00").tag(
        config=True, metavar="WHEN"
    )
    last = Int(100, min=0, max=INT_MAX, help="the last N events; 0: all (default: 100)").tag(config=True, metavar="N")
    aliases: Any = values(
        ("name", "History.named"), ("what", "History.what"), ("since", "History.since"), ("last", "History.last")
    )

    def carry_out(self) -> int:
        ids = ids_given(self)
        try:
            since_s = parse_since(self.since, time.time()) if self.since else 0.0
        except ValueError as error:
            raise UsageError(f"--since: {error}") from None
        question = messages.ReadHistory(ids, self.named or None, self.what or None, since_s, self.last or INT_MAX)
        with connect(self.farm) as questioner:
            rows = events(questioner, question)
            unknown = [] if rows or ids is None else task_rows_of(questioner, ids).unknown
        if self.json:
            print_json([event_shape(row) for row in rows])
        elif rows:
            more = "; --last N shows more" if len(rows) == question.last else ""
            above = [f"{printing.number(len(rows), 'event')}, the newest last{more}"] if len(rows) > 1 else []
            printing.print_table(event_table(rows, above=above))
        else:
            print("nothing happened", file=sys.stderr if unknown else sys.stdout)
        refuse_unknown(unknown)
        return OK


def events(questioner: Questioner, question: messages.ReadHistory) -> list[tables.EventRow]:
    """Return the events in order of time."""
    return questioner.answer_for(question, tables.EventTable, timeout_s=LONG_S).rows
