"""``ipytaskfarm report``: the page of the live view with its data in it, as one file.

It needs neither the farm nor a network: for a mail, a paper, or a look at last night's run next year.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import platform
import time
from html import escape
from typing import Any

from ipytaskfarm.core.messages import FarmStatus, ReadStretches, ReadTaskPage, view
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.states import state_word
from ipytaskfarm.core.stretches import merged
from ipytaskfarm.version import __version__
from ipytaskfarm.view.fold import FarmFold, stretch_row

from . import questions
from .bundle import bundle
from .feed import FarmFeed
from .handlers import STATIC, page_style
from .profiles import profile

TASKS_MAX = 5_000
"""The largest number of tasks in a file: failed ones, then the latest."""
DETAILS_MAX = 200
"""The largest number of tasks with their output and traceback."""
STRETCHES_KEPT = 10_000
ENGINES_MAX = 500


async def report(feed: FarmFeed, job: str | None = None) -> str:
    """Return the page of a farm, or of one job (its id), as HTML.

    Raises:
        FarmNotRunning: the farm does not answer.
    """
    return html(await _collected(feed, job))


async def _collected(feed: FarmFeed, job: str | None) -> dict[str, Any]:
    made_s = time.time()
    fold = FarmFold()
    state = await feed.answer_for(FarmStatus(), FarmState)
    jobs = await feed.answer_for(view.ReadJobs(job=job), view.JobPage)
    engines = await feed.answer_for(view.ReadEngines(count=ENGINES_MAX), view.EnginePage)
    waiting = await feed.answer_for(view.WhyWaiting(), view.WaitingTable)
    if job is not None:  # a farm of an earlier version tells of all
        jobs = view.JobPage([row for row in jobs.rows if row.id == job])
    fold.farm_state(state, __version__)
    fold.job_page(jobs, made_s)
    causes = await feed.answer_for(view.ReadCauses(job, jobs=fold.jobs_to_count()), view.CauseTable)
    fold.cause_table(causes)
    fold.engine_page(engines)
    fold.waiting_table(view.WaitingTable([]) if job is not None else waiting)
    fold.settle()
    stretches, first_s = await _stretches(feed, job, made_s)
    tasks = await _tasks(feed, job)
    counts = state.counts if job is None else await _counts(feed, job)
    details = {}
    for task in [i for row in causes.rows for i in row.ids[:3]][:DETAILS_MAX]:
        details[str(task)] = await questions.ask(feed, "task", {"id": task})
    picture = fold.picture.data
    if job is not None:
        picture["farm"]["job"] = next((row.name for row in jobs.rows), job)
        picture["counts"] = counts
    platforms = sorted({str(agent["platform"]) for agent in engines.agents})
    began_s = min((row.started_s for row in stretches), default=made_s)
    picture["status"] = {"state": "saved", "text": ""}
    picture["report"] = {
        "made_s": made_s,
        "first_s": began_s,
        "last_s": max((row.ended_s for row in stretches), default=made_s),
        "machine": ", ".join([f"Python {platform.python_version()}", *platforms]),
        "tasks": sum(row["items"] for row in tasks),
        "tasks_total": sum(counts.values()),
    }
    return {
        "profile": await _flames(feed),
        "picture": picture,
        "tasks": tasks,
        "details": details,
        "stretches": [stretch_row(row) for row in stretches],
        "first_s": first_s,
    }


async def _flames(feed: FarmFeed) -> dict[str, Any] | None:
    """Return the flame graph of the engines; None if they were never sampled."""
    found = await profile(feed)
    return found if found["samples"] else None


async def _stretches(feed: FarmFeed, job: str | None, made_s: float) -> tuple[list[view.Stretch], float | None]:
    """Return all runs, and when the first task was submitted."""
    found: list[view.Stretch] = []
    before, first_s = None, None
    while True:
        table = await feed.answer_for(ReadStretches(0.0, made_s + 60.0, before, job), view.StretchTable)
        found = merged([*found, *table.rows], 1e-3, STRETCHES_KEPT)
        first_s, before = table.first_s, table.next
        if before is None:
            return found, first_s


async def _tasks(feed: FarmFeed, job: str | None) -> list[dict[str, Any]]:
    """Return the lines of failed tasks, then of the latest ones."""
    found: dict[int, dict[str, Any]] = {}
    for state in ("failed", None):
        before = None
        while len(found) < (TASKS_MAX // 2 if state else TASKS_MAX):
            page = await feed.answer_for(ReadTaskPage(state, job=job, before=before, count=500), view.TaskPage)
            found.update((row.id, questions.task_line(row)) for row in page.rows)
            if page.next is None:
                break
            before = page.next
            await asyncio.sleep(0)
    return list(found.values())


async def _counts(feed: FarmFeed, job: str) -> dict[str, int]:
    """Return how many tasks of a job are in each state, of all its tasks."""
    counts = dict.fromkeys(("scheduled", "running", "succeeded", "failed"), 0)
    before = None
    while True:
        page = await feed.answer_for(ReadTaskPage(job=job, before=before, count=view.PAGE_MAX), view.TaskPage)
        for row in page.rows:
            counts[state_word(row.state)] += row.items
        if page.next is None:
            return counts
        before = page.next


def html(data: dict[str, Any]) -> str:
    """Return the page with this data. Its policy lets nothing run or load but what is in it."""
    script = bundle(STATIC, "saved_main.js")
    style = page_style()
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:"
    # Text of tasks must not end the element that it stands in.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    title = escape(f"{data['picture']['farm']['name']}, a task farm")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n"
        f'<body class="tf-body">\n<div id="page"></div>\n<script type="application/json" id="data">{text}</script>\n'
        f'<script type="module">{script}</script>\n</body>\n</html>\n'
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
