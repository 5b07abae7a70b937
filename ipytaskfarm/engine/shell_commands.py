"""Runs the commands of ``!command`` and similar magics, which write to a pseudo-terminal and have no input."""

from __future__ import annotations

import codecs
import fcntl
import os
import select
import shutil
import signal
import struct
import termios
import time
from contextlib import suppress
from subprocess import DEVNULL, CalledProcessError, Popen, TimeoutExpired

__all__ = ["CalledProcessError", "run_in_shell"]

LOOK_S = 0.05
"""How often it is looked at whether a command that says nothing has ended."""
LEAVE_S = 0.2
"""How long a command that was interrupted may take to end, before it gets the next signal."""
_READ_BYTES = 64 * 1024
_SIZE = struct.pack("HHHH", 24, 80, 0, 0)
"""Rows and columns of the terminal, as IPython's has them."""


def run_in_shell(command: str) -> int:
    """Run a command in the user's shell, and print its output as it comes.

    IPython's own function lets it read from a terminal at which nobody types, so ``!cat`` would wait for ever.  Here
    its stdin is empty, and there is no ``/dev/tty`` at which a program could ask for a password.

    Returns the exit code, or -n for a command that was ended by signal n.  An exception that comes meanwhile, such as
    an interrupt, ends the command.
    """
    shell = shutil.which(os.environ.get("SHELL") or "sh") or "/bin/sh"
    ours, theirs = os.openpty()
    try:
        try:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, _SIZE)
            child = Popen([shell, "-c", command], stdin=DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True)
        finally:
            os.close(theirs)
        output = _Output(ours)
        try:
            while not output.is_over and child.poll() is None:
                output.print_next(LOOK_S)
            code = child.wait()
            _signal(child, signal.SIGHUP)  # to what still runs in the background, as a terminal does that is closed
            output.print_rest()
        except BaseException:
            _end(child, output)
            raise
    finally:
        os.close(ours)
    return 128 - code if code > 128 else code


def _end(child: Popen[bytes], output: _Output) -> None:
    """Interrupt a command with all its children; kill it if that does not end it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        _signal(child, number)
        with suppress(TimeoutExpired):
            child.wait(LEAVE_S)
            break
    output.print_rest()


def _signal(child: Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


class _Output:
    """What a command writes to its terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.is_over = False
        """Whether nobody can write any more."""

    def print_next(self, timeout_s: float) -> bool:
        """Print what is there, at the latest after this time; return whether there was something."""
        if self.is_over or not select.select([self._terminal], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._terminal, _READ_BYTES)
        except OSError:  # EIO: the last process with the terminal has closed it
            data = b""
        self.is_over = not data
        print(self._decode(data, final=self.is_over), end="", flush=True)
        return True

    def print_rest(self) -> None:
        """Print what was written until now; not for long, because a process that has left its group may go on."""
        end_s = time.monotonic() + LEAVE_S
        while self.print_next(0.0) and time.monotonic() < end_s:
            pass
