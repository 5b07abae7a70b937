"""``ipytaskfarm cache``: the results that are kept for equal tasks."""

from __future__ import annotations

from typing import ClassVar

from traitlets import Int, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, JsonCommand, UsageError, flag, switch, unknown_action
from ipytaskfarm.cli.jobs import LONG_S, refuse_unknown, task_rows_of
from ipytaskfarm.cli.json_output import cache_shape, print_json
from ipytaskfarm.core import messages
from ipytaskfarm.core.parsing import parse_span
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display import cache_text


class Cache(JsonCommand):
    """``ipytaskfarm cache``"""

    name = "cache"
    description = """
Lists the results that are kept for equal tasks (cache=True), the most recently used first, with their size, what they
cost to compute and how often they were taken. `cache forget` removes entries; `cache why ID` says why a task took its
result from the cache, or what differs from the nearest entry.
"""
    arguments = "[forget | why ID]"
    examples = """
        ipytaskfarm cache
        ipytaskfarm cache why 73
        ipytaskfarm cache forget --function fit --older 7d
        ipytaskfarm cache forget --all
    """
    function = flag("NAME", Unicode("", help="only entries of functions of this name"))
    key = flag("KEY", Unicode("", help="only the entry whose key begins so"))
    older = flag("TIME", Unicode("", help="only entries unused for this time: 90s, 2h, 7d"))
    last = flag("N", Int(100, min=0, max=100_000, help="how many entries to list (default: 100)"))
    every = switch("forget all entries", "all")

    of_action: ClassVar[dict[str, tuple[str, ...]]] = {
        "function": ("", "forget"),
        "key": ("forget",),
        "older": ("forget",),
        "every": ("forget",),
        "last": ("",),
    }

    def carry_out(self) -> int:
        words = self.extra_args
        self.check_action(words[0] if words else "")
        if not words:
            return self._list()
        if words == ["forget"]:
            return self._forget()
        if words[0] == "why" and len(words) > 1:
            self.extra_args = words[1:]
            return self._why(self.single_task())
        if words[0] not in ("forget", "why"):
            raise unknown_action(words[0], ("forget", "why"))
        raise UsageError("say `cache`, `cache forget` or `cache why ID`")

    def _list(self) -> int:
        with connect(self.farm) as questioner:
            reply = questioner.answer_for(
                messages.ListCache(self.function or None, self.last), messages.CacheTable, timeout_s=LONG_S
            )
        if self.json:
            print_json(cache_shape(reply))
        else:
            printing.print_table(cache_text.cache_table(reply))
        return OK

    def _forget(self) -> int:
        if not (self.function or self.key or self.older or self.every):
            raise UsageError("which entries? --function NAME, --key KEY, --older TIME, or --all")
        try:
            older_s = parse_span(self.older) if self.older else None
        except ValueError as error:
            raise UsageError(f"--older: {error}") from None
        question = messages.ForgetCache(self.function or None, self.key or None, older_s)
        with connect(self.farm) as questioner:
            reply = questioner.answer_for(question, messages.NumberReply, timeout_s=LONG_S)
        if self.json:
            print_json({"forgotten": reply.value})
        else:
            print(f"{reply.value:,} {'entry' if reply.value == 1 else 'entries'} forgotten")
        return OK

    def _why(self, task: int) -> int:
        with connect(self.farm) as questioner:
            report = questioner.answer_for(messages.ReadCacheKey(task), messages.CacheReport, timeout_s=LONG_S)
            unknown = [] if report.key else task_rows_of(questioner, [task]).unknown
        refuse_unknown(unknown)
        text = cache_text.why_hit(task, report) if report.hit else cache_text.why_miss(task, report)
        if self.json:
            print_json({"task": task, "hit": bool(report.hit), "explanation": text})
        else:
            print(text)
        return OK
