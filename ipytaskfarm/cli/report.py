"""``ipytaskfarm report``: the live view as a file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from traitlets import Unicode

from ipytaskfarm.cli.application import OK, Command, UsageError, flag
from ipytaskfarm.cli.jobs import find_job
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.text import size


class Report(Command):
    """``ipytaskfarm report``"""

    name = "report"
    description = """
Writes the page of `ipytaskfarm web` with its data into one file: failures with tracebacks, jobs, engines, the task
stream, and up to 5,000 tasks, failed ones first. The file can be opened without the farm and without a network, for
example from a mail. It contains the output and the errors of tasks, but not their values.
"""
    examples = """
        ipytaskfarm report --output run.html
        ipytaskfarm report --farm nightly --job sweep --output sweep.html
    """
    output = flag("FILE", Unicode("", help="the file to write"), "o output")
    job = flag("NAME", Unicode("", help="only this job: its name (the latest of that name), or its id"))

    def carry_out(self) -> int:
        if not self.output:
            raise UsageError("which file? `ipytaskfarm report --output run.html`")
        job = None
        with connect(self.farm) as questioner:
            if self.job:
                job = find_job(questioner, self.job).id
        text = asyncio.run(self._report(job))
        path = Path(self.output).expanduser()
        path.write_text(text, encoding="utf-8")
        print(f"{path}: {size(len(text.encode()))}")
        return OK

    async def _report(self, job: str | None) -> str:
        from ipytaskfarm.web.feed import FarmFeed, page_connection
        from ipytaskfarm.web.report import report

        connection = page_connection(self.farm, False)
        feed = FarmFeed(connection().farm, connection, False)
        try:
            return await report(feed, job)
        finally:
            await feed.stop()
