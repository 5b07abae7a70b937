"""The reason why a farm did not start: the true cause in a line, and the remedy if the cause is known."""

from __future__ import annotations

import errno
import re
import socket
import threading
from pathlib import Path

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.text import last_line
from ipytaskfarm.system.files import tail

GIVE_UP_S = 1.0
"""One failed start may be chance. If a start fails again this much later and no engine is up, the cause is lasting."""

THREADS = 6
"""The threads that a farm's owner needs: one for supervising, ZeroMQ's for questions and for a client."""

EXIT_STORE, EXIT_REFUSED, EXIT_FULL, EXIT_POLICY, EXIT_ADDRESS = 3, 4, 5, 6, 7
"""Exit codes of the controller, see `controller.__main__`."""
FINAL_EXITS = frozenset({EXIT_STORE, EXIT_REFUSED, EXIT_POLICY, EXIT_ADDRESS})
"""Those after which another start would end in the same way."""

_REMEDIES = (
    ("Too many open files", "raise the limit of open files, `ulimit -n`: a farm needs 64, and 8 more for each engine"),
    ("No space left on device", "make room on that disk, or set TMPDIR to a folder on another one"),
    ("Disk quota exceeded", "make room, or set TMPDIR to a folder without that quota"),
    ("Read-only file system", "set TMPDIR, or JUPYTER_DATA_DIR, to a folder that can be written to"),
    ("Resource temporarily unavailable", "raise the limit of processes and threads, `ulimit -u` or the container's"),
    (
        "can't start new thread",
        "raise the limit of processes and threads, `ulimit -u` or the container's, or that of memory, `ulimit -v`",
    ),
    ("File too large", "raise the limit of the size of files, `ulimit -f`"),
    ("Cannot allocate memory", "raise the limit of memory, `ulimit -v` or the container's"),
    ("failed to map segment", "raise the limit of memory, `ulimit -v` or the container's"),
    ("MemoryError", "raise the limit of memory, `ulimit -v` or the container's"),
    ("No module named", "install it for the Python that starts the farm"),
)
_FAILED_START = re.compile(r"engine \d+ did not start: (.*)", re.DOTALL)
_LOG_HEAD = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ (?P<level>[A-Z]+) [\w.]+: (?P<text>.*)")


def with_remedy(text: str) -> str:
    """Return the text, with the remedy if it is known."""
    remedy = next((remedy for cause, remedy in _REMEDIES if cause in text), "")
    return f"{text}: {remedy}" if remedy and remedy not in text else text


def refusal_of(status: int, said: str) -> Exception:
    """Return the error for a controller that has ended with this exit code and output, with the remedy if known."""
    text = said.rpartition("\n")[2] or f"the controller ended with exit code {status} and without a word"
    kinds = {
        EXIT_REFUSED: errors.FarmExists,
        EXIT_POLICY: errors.QueuePolicyError,
        EXIT_ADDRESS: errors.ConnectionError,
    }
    return kinds.get(status, errors.StoreError)(with_remedy(text))


def last_error(log: Path) -> str:
    """Return the last warning or error in the log of a controller or agent; "" if there is none."""
    lines = tail(log).splitlines()
    for number in range(len(lines) - 1, -1, -1):
        head = _LOG_HEAD.match(lines[number])
        if head is not None and head["level"] in ("WARNING", "ERROR", "CRITICAL"):
            # Lines without a head are the traceback of this entry.
            behind = [line for line in lines[number + 1 :] if line.strip()]
            more = last_line("\n".join(behind)) if behind and not any(map(_LOG_HEAD.match, behind)) else ""
            return f"{head['text']}: {more}" if more else head["text"]
    return ""


def failed_starts(lines: list[str]) -> list[str]:
    """Return one line for each engine that did not start, from a farm's changes (`display.farm_tables.changes`)."""
    found = [match[1] for line in lines if (match := _FAILED_START.match(line)) is not None]
    return [_cause(text) for text in found]


def _cause(text: str) -> str:
    """Return the first line, with the line that names a cause with a known remedy if that is another one."""
    first, _, printed = text.partition("\n")
    known = next((line for line in printed.splitlines() if any(cause in line for cause, _ in _REMEDIES)), "")
    return with_remedy(f"{first}: {known.strip()}" if known and known.strip() not in first else first)


class StartWatch:
    """Watches the starts of a farm's engines, until one is up or it is clear that none will come up."""

    def __init__(self) -> None:
        self.cause = ""
        """The reason why the last engine did not start; "" if none has failed."""
        self._first_s: float | None = None
        self._failed_again = False

    def look(self, lines: list[str], now_s: float) -> None:
        """Take note of changes in the farm."""
        causes = failed_starts(lines)
        if not causes:
            return
        self.cause = causes[-1]
        if self._first_s is None:
            self._first_s = now_s
        self._failed_again = self._failed_again or now_s - self._first_s >= GIVE_UP_S

    def is_hopeless(self, state: FarmState) -> bool:
        """Return whether engines fail again and again while none is up."""
        return self._failed_again and not any(row.state in ("idle", "busy", "preparing") for row in state.engines)


def check_threads() -> None:
    """Check that this process can start more threads. Otherwise ZeroMQ would end the process without an exception.

    Raises:
        ConnectionError: it cannot.
    """
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
    """Check that this machine can connect to itself at the address on which the controller will listen.

    Raises:
        ConnectionError: it cannot.
    """
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
