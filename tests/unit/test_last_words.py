"""Test the part of the flight recorder that keeps the output of a killed engine."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipytaskfarm.system.files import tail
from ipytaskfarm.system.flight_recorder import Recorder
from ipytaskfarm.system.last_words import WORDS_BYTES, LastWords

RUN = (7, 1)


def test_the_end_of_a_file_begins_with_a_line_unless_the_last_line_is_longer(tmp_path: Path) -> None:
    log = tmp_path / "some.log"
    log.write_bytes(b"x" * 1000 + b"\nshort caf\xe9\n")
    assert tail(log, 100) == "short caf\N{REPLACEMENT CHARACTER}"
    log.write_bytes(b"before\n" + b"y" * 1000 + b"\n")
    assert tail(log, 100) == "y" * 99
    assert tail(tmp_path / "none.log", 100) == ""


@pytest.fixture
def words() -> Iterator[LastWords]:
    with mmap.mmap(-1, WORDS_BYTES) as mapped:
        made = LastWords(memoryview(mapped))
        yield made
        made.close()


def test_lines_stand_there_at_once_and_the_rest_after_a_flush(words: LastWords) -> None:
    words.begin(RUN)
    words.write("one")
    assert words.read(RUN) == ""
    words.write("\n")
    words.write("tw")
    assert words.read(RUN) == "one\n"
    words.flush()
    assert words.read(RUN) == "one\ntw"


def test_they_belong_to_one_run(words: LastWords) -> None:
    words.begin(RUN)
    words.write("mine\n")
    assert words.read((8, 1)) == words.read((7, 2)) == words.read(None) == ""
    words.begin((8, 1))
    assert words.read((8, 1)) == "", "it has printed nothing yet"
    words.write("its\n")
    assert words.read((8, 1)) == "its\n"
    assert words.read(RUN) == ""
    words.begin(None)
    words.write("of a command\n")
    assert words.read(None) == "of a command\n"


def test_of_a_flood_the_end_stays(words: LastWords) -> None:
    words.begin(RUN)
    for n in range(10_000):
        words.write(f"line {n} ü\n")
    found = words.read(RUN)
    assert found.endswith("line 9998 ü\nline 9999 ü\n")
    assert 15_000 < len(found.encode()) <= WORDS_BYTES
    for long in (50_000, 16_384, 16_320, 16_319, 100):
        words.write("x" * long + f"end {long}\n")
        assert words.read(RUN).endswith(f"xxxend {long}\n")
        assert len(words.read(RUN)) <= WORDS_BYTES


def test_text_that_cannot_be_encoded_does_no_harm(words: LastWords) -> None:
    words.begin(RUN)
    words.write("lone \udcff\n")
    assert words.read(RUN) == "lone \\udcff\n"


def test_they_outlive_a_killed_process(tmp_path: Path) -> None:
    agent = Recorder.create(tmp_path / "engine-1.rec", "s.1", 1)
    pid = os.fork()
    if pid == 0:
        engine = Recorder.open(agent.path)
        engine.begin(*RUN)
        engine.words.begin(RUN)
        engine.words.write("before the end\n")
        engine.words.mark(1, 12_345)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert agent.words.read(RUN) == "before the end\n"
    assert agent.words.marked(1) == 12_345
    assert not agent.runs_command
    agent.close()
    again = Recorder.open(agent.path)
    assert again.words.read(RUN) == "before the end\n", "the next agent finds them too"
    again.close()
