"""Calls of a `Client` that may go on in a thread, as ``block=False`` asks for."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable

from ipytaskfarm.adapters.ipyparallel.interfaces import Later


def in_thread(call: Callable[[], None]) -> concurrent.futures.Future[None]:
    """Call a function in a thread of its own; return a future of its end."""
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            call()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="ipytaskfarm ipyparallel", daemon=True).start()
    return future


def now_or_later(call: Callable[[], None], block: bool | None) -> Later:
    """Call a function; block=False: in a thread, and return a future."""
    if block is False:
        return in_thread(call)
    call()
    return None
