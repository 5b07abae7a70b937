"""What may stand in the place of a file and is none, or has another content."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path

NO_FILES = ("folder", "pipe", "link", "dangling link", "socket")
CONTENTS = {"empty": b"", "number": b"5", "null": b"null", "wrong records": b'[{"pid": "x"}, 5, {"kind": "agent-0"}]'}


def put(path: Path, kind: str) -> None:
    """Put this kind of thing in the place of a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match kind:
        case "folder":
            path.mkdir()
            (path / "inside").touch()
        case "pipe":
            os.mkfifo(path, 0o600)
        case "link" | "dangling link":
            elsewhere = path.with_name(f"{path.name}-elsewhere")
            if kind == "link":
                elsewhere.write_bytes(b"precious")
            path.symlink_to(elsewhere)
        case "socket":
            # The path may be too long for a unix socket.
            with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:
                bound.bind("bound")
                os.rename("bound", path.name)
        case _:
            path.write_bytes(CONTENTS[kind])
            path.chmod(0o600)
