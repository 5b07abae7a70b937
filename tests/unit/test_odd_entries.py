"""What a task may have put in the place of a farm's own file or folder is removed, whatever it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ipytaskfarm.system.bell import Bell
from ipytaskfarm.system.files import tail
from ipytaskfarm.system.flight_recorder import Recorder
from ipytaskfarm.system.odd_files import (
    open_file,
    read_note,
    remove_entry,
    remove_unless_file,
    remove_unless_folder,
    write_note,
)


def a_full_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").touch()
    (path / "inner").chmod(0)
    path.chmod(0)


THINGS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("x"),
    "file without permissions": lambda path: path.touch(mode=0),
    "folder": a_full_folder,
    "pipe": os.mkfifo,
    "link to nothing": lambda path: path.symlink_to("/nonexistent/file"),
    "link to itself": lambda path: path.symlink_to(path),
    "nothing": lambda path: None,
}


@pytest.fixture(params=THINGS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path with something in its place."""
    tmp_path.chmod(0o700)
    THINGS[request.param](tmp_path / "place")
    return tmp_path / "place"


def test_it_is_removed(place: Path) -> None:
    remove_entry(place)
    assert not os.path.lexists(place)


def test_a_place_below_a_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remove_entry(tmp_path / "file" / "place")
    remove_unless_file(tmp_path / "file" / "place")


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for way in (remove_entry, remove_unless_file, remove_unless_folder):
        way(tmp_path / "link")
        assert (tmp_path / "folder" / "inner").is_dir()
        if not os.path.lexists(tmp_path / "link"):
            (tmp_path / "link").symlink_to(tmp_path / "folder")


def test_there_is_a_file_or_room_for_one(place: Path) -> None:
    remove_unless_file(place)
    place.open("a").close()
    assert stat.S_IMODE(place.stat().st_mode) & 0o600 == 0o600


def test_there_is_a_private_folder_or_room_for_one(place: Path) -> None:
    remove_unless_folder(place)
    place.mkdir(mode=0o700, exist_ok=True)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_folder_that_others_may_have_changed_stays_as_it_is(tmp_path: Path) -> None:
    """Below a private folder nobody can have; elsewhere it is refused by the code that opens it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "folder").mkdir()
    (shared / "folder").chmod(0o755)
    remove_unless_folder(shared / "folder")
    assert stat.S_IMODE((shared / "folder").stat().st_mode) == 0o755
    shared.chmod(0o700)
    remove_unless_folder(shared / "folder")
    assert stat.S_IMODE((shared / "folder").stat().st_mode) == 0o700


def test_notes_replace_it(place: Path) -> None:
    assert read_note(place) in ("", "x"), "it does not wait for a pipe"
    write_note(place, "text")
    assert read_note(place) == "text"
    assert os.listdir(place.parent) == ["place"]


def test_a_note_in_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    write_note(tmp_path / "gone" / "note", "text")
    assert read_note(tmp_path / "gone" / "note") == ""


def test_the_tail_of_it_does_not_wait(place: Path) -> None:
    assert tail(place) in ("", "x")


def test_only_a_file_is_opened(place: Path) -> None:
    try:
        with open_file(place) as file:
            assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:
        assert not place.is_file() or not os.access(place, os.R_OK)


def test_a_bell_and_a_recorder_take_its_place(place: Path) -> None:
    bell = Bell.listen(place)
    place.unlink()
    place.mkdir()
    bell.close()
    assert not place.exists()
    place.with_name("place.spill-0").mkdir()
    recorder = Recorder.create(place, "agent.1", 0, ring_bytes=16384)
    recorder.end_with(bytes(10_000), 1, 0)
    assert [record.data for record in recorder.read()] == [bytes(10_000)]
    place.with_name("place.spill-0").unlink()
    place.with_name("place.spill-0").mkdir()
    recorder.release(recorder.read()[0].cursor if recorder.unread else recorder._cursor)
    recorder.close()
    place.unlink()
    place.mkdir()
    Recorder.remove(place)
    assert os.listdir(place.parent) == []
