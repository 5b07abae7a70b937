"""The sampler's stacks of several engines as one flame graph of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipytaskfarm.core.messages.engine_commands import SampleProfile
from ipytaskfarm.display.flamegraph import bars, place_label

from .fold import cut

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
