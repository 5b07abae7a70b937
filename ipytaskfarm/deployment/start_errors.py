"""Why a farm did not start: the true cause in a line, and the remedy where the cause is known."""

from __future__ import annotations

import errno
import re
import socket
import threading
from pathlib import Path

from ipytaskfarm.core import errors
from ipytaskfarm.core.formatting import last_line
from ipytaskfarm.core.messages.tables import FarmState

GIVE_UP_S = 1.0
"""A first start may fail by chance.  When one fails again so much later, and no engine came up, the cause stays."""

THREADS = 6
"""So many a farm's owner needs: to look after it, and of ZeroMQ for questions and for a client."""

_REMEDIES = (
    ("Too many open files", "raise the limit of open files, `ulimit -n`: a farm needs 64, and 8 more for each engine"),
    ("No space left on device", "make room on that disk, or set TMPDIR to a folder on another one"),
    ("Disk quota exceeded", "make room, or set TMPDIR to a folder without that quota"),
    ("Read-only file system", "set TMPDIR, or JUPYTER_DATA_DIR, to a folder that can be written to"),
    ("Resource temporarily unavailable", "raise the limit of processes and threads, `ulimit -u` or the container's"),
    ("can't start new thread", "raise the limit of processes and threads, `ulimit -u` or the container's"),
    ("Cannot allocate memory", "raise the limit of memory, `ulimit -v` or the container's"),
    ("failed to map segment", "raise the limit of memory, `ulimit -v` or the container's"),
    ("MemoryError", "raise the limit of memory, `ulimit -v` or the container's"),
    ("No module named", "install it for the Python that starts the farm"),
)
_FAILED_START = re.compile(r"engine \d+ did not start: (.*)", re.DOTALL)
_LOG_HEAD = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ (?P<level>[A-Z]+) [\w.]+: (?P<text>.*)")
_END_BYTES = 4000


def with_remedy(text: str) -> str:
    """Return the text, and what to do about it if that is known."""
    remedy = next((remedy for cause, remedy in _REMEDIES if cause in text), "")
    return f"{text}: {remedy}" if remedy else text


def tail(log: Path) -> str:
    """Return the end of a text file; "": there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_error(log: Path) -> str:
    """Return the last warning or error in the log of a controller or agent; "": there is none."""
    lines = tail(log).splitlines()
    for number in range(len(lines) - 1, -1, -1):
        head = _LOG_HEAD.match(lines[number])
        if head is not None and head["level"] in ("WARNING", "ERROR", "CRITICAL"):
            # What follows without a head is the traceback of this entry.
            behind = [line for line in lines[number + 1 :] if line.strip()]
            more = last_line("\n".join(behind)) if behind and not any(map(_LOG_HEAD.match, behind)) else ""
            return f"{head['text']}: {more}" if more else head["text"]
    return ""


def failed_starts(lines: list[str]) -> list[str]:
    """Of what has changed in a farm (`core.formatting.changes`): why engines did not start, a line each."""
    found = [match[1] for line in lines if (match := _FAILED_START.match(line)) is not None]
    return [_cause(text) for text in found]


def _cause(text: str) -> str:
    """Return the first line, and the one that names a cause with a known remedy if that is another."""
    first, _, printed = text.partition("\n")
    known = next((line for line in printed.splitlines() if any(cause in line for cause, _ in _REMEDIES)), "")
    return with_remedy(f"{first}: {known.strip()}" if known and known.strip() not in first else first)


class StartWatch:
    """Looks at the starts of a farm's engines, until one is there or it is clear that none will come."""

    def __init__(self) -> None:
        self.cause = ""
        """Why the last one did not start; "": none has failed."""
        self._first_s: float | None = None
        self._failed_again = False

    def look(self, lines: list[str], now_s: float) -> None:
        """Take note of what has changed."""
        causes = failed_starts(lines)
        if not causes:
            return
        self.cause = causes[-1]
        if self._first_s is None:
            self._first_s = now_s
        self._failed_again = self._failed_again or now_s - self._first_s >= GIVE_UP_S

    def is_hopeless(self, state: FarmState) -> bool:
        """Return whether engines fail again and again, and none is there."""
        return self._failed_again and not any(row.state in ("idle", "busy", "preparing") for row in state.engines)


def check_threads() -> None:
    """ConnectionError: this process can start no more threads.  ZeroMQ would end the process without an exception."""
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(THREADS):
            thread = threading.Thread(target=end.wait, name="ipytaskfarm check")
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise errors.ConnectionError(with_remedy(str(error))) from error
    finally:
        end.set()
        for thread in started:
            thread.join()


def check_loopback(host: str) -> None:
    """ConnectionError: this machine cannot connect to itself at the address on which the controller is to listen."""
    if host not in ("127.0.0.1", "localhost"):
        return
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            with socket.create_connection(listener.getsockname(), timeout=5.0):
                pass
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise errors.ConnectionError(with_remedy(str(error))) from error
        raise errors.ConnectionError(
            f"this machine cannot connect to itself at 127.0.0.1 ({error.strerror or error}): bring the loopback"
            " interface up, `ip link set lo up`, or give `host` an address that works"
        ) from error
