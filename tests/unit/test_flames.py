"""The flame graph of the live view: bounded, whatever the engines have seen; and what a reader may ask for."""

from __future__ import annotations

import msgspec
import pytest

from ipytaskfarm.core.messages import Keep, SendCommand
from ipytaskfarm.core.messages.engine_commands import (
    PROFILE,
    READ_SAMPLES,
    Place,
    ProfileBody,
    SampleProfile,
)
from ipytaskfarm.transport.read_only import SAMPLED_MAX, why_refused
from ipytaskfarm.web.profiles import BOXES_MAX, DEPTH_MAX, LABEL_MAX, flames


def place(name: str) -> Place:
    return Place(name, "m", "m.py", 3)


def test_engines_are_added_up() -> None:
    one = SampleProfile(0, 0.02, [place("outer"), place("inner")], [([0, 1], 3), ([0], 2)])
    two = SampleProfile(1, 0.02, [place("inner"), place("outer")], [([1, 0], 5)])
    found = flames([one, two])
    assert found["rows"] == [[0, "all", 10], [1, "outer (m:3)", 10], [2, "inner (m:3)", 8]]
    assert (found["samples"], found["engines"], found["left_out"]) == (10, [0, 1], 0)


def test_without_samples_there_is_no_box() -> None:
    assert flames([])["rows"] == []
    assert flames([SampleProfile(0, 0.02, [], [])])["samples"] == 0


def test_it_is_bounded_and_every_box_has_its_caller() -> None:
    names = [place(f"f{n}" + "x" * 500) for n in range(5000)]
    deep = list(range(500))
    stacks = [(deep, 10_000), *(([n % 7, n], 1 + n % 5) for n in range(5000))]
    found = flames([SampleProfile(0, 0.02, names, stacks)])
    rows = found["rows"]
    assert len(rows) <= BOXES_MAX
    assert found["left_out"] > 3000
    assert max(depth for depth, _, _ in rows) == DEPTH_MAX
    assert all(len(label) <= LABEL_MAX for _, label, _ in rows)
    above: list[int] = []
    for depth, _, samples in rows:
        assert depth <= len(above), "the caller is there"
        assert depth == 0 or above[depth - 1] >= samples
        above[depth:] = [samples]
    assert len(msgspec.json.encode(found)) < 400_000


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (SendCommand(1, [0], PROFILE, READ_SAMPLES), True),
        (SendCommand(1, None, PROFILE, READ_SAMPLES), False),
        (SendCommand(1, list(range(SAMPLED_MAX + 1)), PROFILE, READ_SAMPLES), False),
        (SendCommand(1, [0], PROFILE, msgspec.msgpack.encode(ProfileBody("sampling", "stop"))), False),
        (SendCommand(1, [0], PROFILE, msgspec.msgpack.encode(ProfileBody("memory", "read"))), False),
        (SendCommand(1, [0], "execute", READ_SAMPLES), False),
    ],
)
def test_a_reader_may_read_the_samples_of_a_few_engines_alone(command: SendCommand, allowed: bool) -> None:
    assert (why_refused(command) == "") is allowed


def test_a_command_that_is_kept_for_replacements_is_no_reading() -> None:
    kept = msgspec.structs.replace(SendCommand(1, [0], PROFILE, READ_SAMPLES), keep=Keep())
    assert "SendCommand" in why_refused(kept)
