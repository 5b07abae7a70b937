"""A person's hour at the live view, as steps that are the same in JupyterLab, through a hub's proxy, and standalone.

A job has failed tasks and a slow one beside it. The person watches it, opens its failures, repairs the cause, tries the
group again, aborts the slow one, closes the tab, and comes back. A reader sees all this and can change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, expect

from ipytaskfarm import Task, TaskClient
from tests.support.polling import eventually

REASON = "no convergence"
FAILED = 5


def work(repaired: Path) -> str:
    """Return code that submits the job: of 20 tasks 5 fail, until somebody has repaired the cause; and a slow task."""
    return f"""
from ipytaskfarm import Task
FIT = "import os\\nif {{}} % 4 == 0 and not os.path.exists({str(repaired)!r}): raise ValueError('{REASON}')"
job = tc.create_job("fits")
for n in range(20):
    job.add_task(Task(FIT.format(n), name="fit"))
job.submit()
slow = tc.run(Task("import time; time.sleep(600)", name="slow"))
"""


@dataclass
class Hour:
    """One walk.

    Args:
        open: opens the farm's page, also after it was closed; the element with all of it.
        close: closes its tab.
        tc: a client, which knows what has become of what the person did.
        repaired: the file that repairs the tasks.
        acts: whether this person may change the farm.
        before: how many tasks had succeeded before the job.
    """

    open: Callable[[], Locator]
    close: Callable[[], None]
    tc: TaskClient
    repaired: Path
    acts: bool = True
    before: int = 0

    def walk(self) -> None:
        """Take all steps."""
        tab = self.open()
        self._watch_the_job(tab)
        self._open_its_failures(tab)
        if self.acts:
            self._retry_the_group(tab)
            self._abort_the_slow_one(tab)
        else:
            self._look_in_vain_for_buttons(tab)
        self._leave_and_come_back()

    def _watch_the_job(self, tab: Locator) -> None:
        job = tab.locator("#tf-jobs")
        expect(job).to_contain_text("fits")
        expect(job).to_contain_text("20 of 20")
        expect(job).to_contain_text(f"{FAILED} failed")
        self._counts(tab, succeeded=self.before + 15, failed=FAILED, running=1)
        job.get_by_role("button", name="fits").first.click()
        expect(tab.locator("#tf-tasks tbody tr")).to_have_count(20)

    def _open_its_failures(self, tab: Locator) -> None:
        tab.locator(".tf-cause-head", has_text="ValueError").click()
        opened = tab.locator("#tf-causes .tf-cause-body")
        expect(opened.locator("pre")).to_contain_text(f"ValueError: {REASON}")
        opened.locator(".tf-link").first.click()
        expect(tab.locator(".tf-drawer")).to_contain_text("failed: error")
        tab.locator(".tf-drawer").get_by_role("button", name="Close").click()
        expect(tab.locator(".tf-drawer")).to_be_hidden()

    def _retry_the_group(self, tab: Locator) -> None:
        self.repaired.touch()
        tab.get_by_role("button", name=f"Try {FAILED} tasks again").click()
        expect(tab.locator(".tf-notices")).to_contain_text(f"{FAILED} tasks submitted again")
        self._counts(tab, succeeded=self.before + 20, failed=FAILED)

    def _abort_the_slow_one(self, tab: Locator) -> None:
        self._show_running(tab)
        tab.locator("#tf-tasks tbody tr", has_text="slow").locator(".tf-link").click()
        drawer = tab.locator(".tf-drawer")
        drawer.get_by_role("button", name="Abort").click()
        expect(drawer).to_contain_text("aborted")
        eventually(lambda: not self.tc.tasks(state="unfinished"), what="the slow task ends")
        drawer.get_by_role("button", name="Close").click()
        self._counts(tab, failed=FAILED + 1, running=0)

    def _look_in_vain_for_buttons(self, tab: Locator) -> None:
        self._show_running(tab)
        tab.locator("#tf-tasks tbody tr", has_text="slow").locator(".tf-link").click()
        expect(tab.locator(".tf-drawer").get_by_role("button", name="Where is it now?")).to_be_visible()
        words = "Abort|again|Pause|Go on|Drain|Release|^Set|Sample|Begin"
        expect(tab.get_by_role("button", name=re.compile(words))).to_have_count(0)
        tab.locator(".tf-drawer").get_by_role("button", name="Close").click()

    def _show_running(self, tab: Locator) -> None:
        """Show the running tasks, whatever was filtered before."""
        tab.locator(".tf-total[data-state=running]").click()

    def _leave_and_come_back(self) -> None:
        self.close()
        self.tc.run(Task("a = 1"), block=True)
        tab = self.open()
        again = FAILED if self.acts else 0
        self._counts(tab, succeeded=self.before + 15 + again + 1, failed=FAILED + self.acts)
        expect(tab.locator("#tf-jobs")).to_contain_text("fits")

    def _counts(self, tab: Locator, **counts: int) -> None:
        for state, count in counts.items():
            expect(tab.locator(f".tf-total[data-state={state}] strong")).to_have_text(str(count))
