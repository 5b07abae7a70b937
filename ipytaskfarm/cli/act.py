"""Commands that change tasks: abort, retry, pause, resume."""

from __future__ import annotations

import sys
from typing import Any

from traitlets import Bool

from ipytaskfarm.cli import show
from ipytaskfarm.cli.application import FAILED, OK, Command, switches
from ipytaskfarm.core import messages
from ipytaskfarm.questions import connect


class Abort(Command):
    """``ipytaskfarm abort``"""

    name = "abort"
    description = """
Aborts tasks: those that have not begun never run; in running ones an interrupt is raised, and an engine that does not
heed it is replaced. Finished ones are passed over. Exit code 1 if an id was never given out.
"""
    arguments = "ID…"
    examples = """
        ipytaskfarm abort 12 13
        ipytaskfarm abort 12 --no-interrupt
    """
    interrupt = Bool(True, help="interrupt running tasks").tag(config=True)
    flags: Any = switches(("no-interrupt", "Abort.interrupt", False, "let running ones end; drop their results"))

    def carry_out(self) -> int:
        ids = self.number_arguments("task")
        with connect(self.farm) as questioner:
            reply = questioner.answer(messages.Abort(ids, self.interrupt), timeout_s=30.0)
        assert isinstance(reply, messages.Aborted)
        for task, outcome in reply.outcomes:
            print(f"task {task}: {outcome}", file=sys.stderr if outcome == "unknown" else sys.stdout)
        return FAILED if any(outcome == "unknown" for _, outcome in reply.outcomes) else OK


class Retry(Command):
    """``ipytaskfarm retry``"""

    name = "retry"
    description = "Hands failed tasks in again, with the same inputs, as new tasks that are linked to the old ones."
    arguments = "ID…"
    examples = "ipytaskfarm retry 12 13"

    def carry_out(self) -> int:
        ids = self.number_arguments("task")
        with connect(self.farm) as questioner:
            reply = questioner.answer(messages.Retry(ids), timeout_s=30.0)
        assert isinstance(reply, messages.Retried)
        for old, new in reply.ids:
            print(f"task {old}: handed in again as task {new}")
        for task in reply.missing:
            print(f"task {task}: there is no such task", file=sys.stderr)
        for task in reply.not_failed:
            print(f"task {task}: has not failed", file=sys.stderr)
        return FAILED if reply.missing or reply.not_failed else OK


class Pause(Command):
    """``ipytaskfarm pause``"""

    name = "pause"
    description = "Holds a farm: what runs goes on, but no further task is started until `ipytaskfarm resume`."
    examples = "ipytaskfarm pause"

    def carry_out(self) -> int:
        return _hold(self.farm, on=True)


class Resume(Command):
    """``ipytaskfarm resume``"""

    name = "resume"
    description = "Lets a farm go on that was paused, or started with --hold."
    examples = "ipytaskfarm resume"

    def carry_out(self) -> int:
        return _hold(self.farm, on=False)


def _hold(farm: str, *, on: bool) -> int:
    with connect(farm) as questioner:
        reply = questioner.answer(messages.Hold(on))
        assert isinstance(reply, messages.Flag)
        status = questioner.answer(messages.QueueStatus())
    assert isinstance(status, messages.QueueStatusReply)
    was = " already" if reply.value is on else ""
    waiting = show.number(status.counts.get("scheduled", 0), "task")
    print(f"farm {farm!r} is{was} {'paused' if on else 'running'}; {waiting} waiting")
    return OK
