"""The flame graph of a page: the sampler's stacks of the engines, and switching the sampler on and off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ipytaskfarm.core import messages
from ipytaskfarm.core.messages.engine_commands import (
    PROFILE,
    READ_SAMPLES,
    SAMPLING_KEY,
    ProfileBody,
    SampleProfile,
)
from ipytaskfarm.core.messages.view import EnginePage, ReadEngines
from ipytaskfarm.display.flamegraph import bars, place_label
from ipytaskfarm.view.fold import cut

from .feed import FarmFeed

BOXES_MAX = 2000
"""The largest number of boxes: those with the most samples are kept."""
DEPTH_MAX = 120
"""The largest number of functions above one another."""
LABEL_MAX = 160


def flames(profiles: Sequence[SampleProfile]) -> dict[str, Any]:
    """Return a flame graph for a page.

    Its ``rows`` are ``[depth, label, samples]``, callers before callees.  A function whose callees have fewer samples
    than itself was seen itself, or its callees are among the ``left_out`` boxes.
    """
    stacks: dict[tuple[str, ...], int] = {}
    for profile in profiles:
        labels = [cut(place_label(place), LABEL_MAX) for place in profile.places]
        for numbers, samples in profile.stacks:
            stack = tuple([labels[number] for number in numbers])
            stacks[stack] = stacks.get(stack, 0) + samples
    boxes = list(bars(stacks))
    shown = [index for index, box in enumerate(boxes) if box.depth <= DEPTH_MAX]
    # A caller has at least the samples of its callee and comes before it, so it is kept with it.
    shown.sort(key=lambda index: -boxes[index].samples)
    kept = sorted(shown[:BOXES_MAX])
    return {
        "engines": [profile.engine for profile in profiles],
        "sampled": sum(profile.is_on for profile in profiles),
        "interval_s": max((profile.interval_s for profile in profiles), default=0.0),
        "samples": sum(stacks.values()),
        "rows": [[boxes[index].depth, boxes[index].label, boxes[index].samples] for index in kept],
        "left_out": len(boxes) - len(kept),
    }


ENGINES_MAX = 32
"""The largest number of engines in one flame graph."""
PATIENCE_S = 4.0
"""How long engines have for their answer: C code that holds the GIL delays it."""


async def profile(feed: FarmFeed, engine: int | None = None) -> dict[str, Any]:
    """Return the flame graph of an engine, or of the first engines.

    ``asked`` is the number of engines that were asked, ``answered`` that of those that have answered, and ``total``
    that of all.  ``engines`` has those on which the sampler was started, ``sampled`` the number of those that are now.
    """
    page = await feed.answer_for(ReadEngines(count=ENGINES_MAX) if engine is None else ReadEngines(count=1), EnginePage)
    ids = [row.id for row in page.rows if row.state in ("idle", "busy")] if engine is None else [engine]
    found: list[SampleProfile] = []
    answered = 0
    if ids:
        for answer in await feed.command(ids, PROFILE, READ_SAMPLES, PATIENCE_S):
            if answer.ok and answer.engine_id in ids:
                answered += 1
                if (samples := _samples(answer.body)) is not None:
                    found.append(samples)
    found.sort(key=lambda samples: samples.engine)
    return {**flames(found), "asked": len(ids), "answered": answered, "total": page.total}


def _samples(body: bytes) -> SampleProfile | None:
    try:
        return msgspec.msgpack.decode(body, type=SampleProfile | None)
    except (msgspec.MsgspecError, ValueError):  # of an engine of another version
        return None


async def switch_sampler(feed: FarmFeed, on: bool) -> None:
    """Switch the sampler on or off, on all engines and on those that begin later, as ``tc.sampling`` does."""
    start, stop = (msgspec.msgpack.encode(ProfileBody("sampling", op)) for op in ("start", "stop"))
    if on:
        await feed.answer(messages.SetSticky(SAMPLING_KEY, PROFILE, start, "sampling.start()"))
    else:
        await feed.answer(messages.ClearSticky([SAMPLING_KEY]))
    first = 0
    while True:
        page = await feed.answer_for(ReadEngines(first, 500), EnginePage)
        ids = [row.id for row in page.rows if row.state in ("idle", "busy")]
        if ids:
            await feed.command(ids, PROFILE, start if on else stop, PATIENCE_S)
        first += len(page.rows)
        if not page.rows or first >= page.total:
            return
