"""The live view in a notebook's cell: a widget of the kernel, or, without anywidget, the present state as HTML.

The kernel follows the farm in a thread, with a connection of its own, as a web server does. So the page goes on while
a cell runs.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from ipytaskfarm.client.screens import Slot
from ipytaskfarm.display.ipython import notebook_shell
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.system.live_pages import page_link, page_path
from ipytaskfarm.view.picture import Delta, PictureData
from ipytaskfarm.web import last_state, questions
from ipytaskfarm.web.bundle import bundled
from ipytaskfarm.web.feed import FarmFeed
from ipytaskfarm.web.handlers import QUESTIONS_MAX, STATIC, error_value, page_style

FIRST_S = 3.0
"""Seconds to wait for the first picture."""
WHOLE_AFTER_S = 1.5
"""The time in seconds in which the page's script begins. Deltas before that are lost: the picture is sent again."""
WHOLE_EVERY_S = 20.0
"""The whole picture is sent again after this time, for pages that have lost a delta."""


def view(read_info: Callable[[], ConnectionInfo], job: str = "") -> LiveView:
    """Return the live view of a farm, as the last line of a cell shows it.

    Args:
        read_info: returns the connection file.
        job: the id of a job with whose tasks the table of tasks begins.
    """
    return LiveView(read_info, job)


class LiveView:
    """The live view of a farm in a notebook; elsewhere its repr is the present state."""

    def __init__(self, read_info: Callable[[], ConnectionInfo], job: str) -> None:
        info = read_info()
        self.farm = info.farm
        self._job = job
        self._feed = FarmFeed(self.farm, read_info, info.role == "client", within_client=True)
        self._widget: Any = None
        self._saved: SavedView | None = None

    def __repr__(self) -> str:
        return str(self._state()["text/plain"])

    def _ipython_display_(self) -> None:
        """Show it in a notebook as two outputs: the state as a table, which is renewed and saved, and the widget.

        Raises:
            NotImplementedError: this is no notebook, and IPython shows the repr.
        """
        shell = notebook_shell()
        if shell is None:
            raise NotImplementedError
        if self._saved is None:
            self._saved = SavedView(self._feed, self.farm, self._link(), shell)
        self._saved.present(self._picture())
        _run(self._saved.begin()).result(FIRST_S)
        widget = self._shown_widget()
        if widget:
            needs = f"the live view of farm {self.farm!r} is here while the notebook's kernel runs"
            shell.display_pub.publish({**widget, "text/plain": needs})

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        state = self._state()  # waits for the first picture, which the widget then has from the beginning
        return {**self._shown_widget(), **state}

    def _shown_widget(self) -> dict[str, Any]:
        """Return the mimetypes of the widget; nothing without anywidget."""
        try:
            if self._widget is None:
                self._widget = _make_widget(self._feed, self._job)
        except ImportError:
            return {}
        shown = self._widget._repr_mimebundle_() or {}
        found: dict[str, Any] = shown[0] if isinstance(shown, tuple) else shown
        return found

    def _picture(self) -> PictureData:
        found: PictureData = _run(_first_picture(self._feed)).result(FIRST_S + 5.0)
        return found

    def _link(self) -> str:
        return page_link(page_path(self.farm, self._job))

    def _state(self) -> dict[str, Any]:
        return last_state.bundle_of(self.farm, self._picture(), self._link())


async def _first_picture(feed: FarmFeed) -> dict[str, Any]:
    """Return a copy of the picture of a farm: the loop goes on to change its own."""
    copied: dict[str, Any] = json.loads(json.dumps(await feed.first_picture(FIRST_S)))
    return copied


# -- the thread in which all widgets of a process follow their farms


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="ipytaskfarm live view", daemon=True).start()
    return loop


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, _loop())


# -- the widget


@functools.cache
def script() -> str:
    """Return the page as one module, as anywidget wants it."""
    return (
        f"{bundled(STATIC, 'widget.js')}\nconst {{makeWidget}} = load('widget.js');\n"
        f"export default () => makeWidget({json.dumps(page_style())});\n"
    )


def _make_widget(feed: FarmFeed, job: str) -> Any:
    """Return a widget that shows a feed.  Raises ImportError without anywidget."""
    import anywidget
    import traitlets

    class FarmWidget(anywidget.AnyWidget):
        _esm = script()
        picture = traitlets.Dict().tag(sync=True)
        stamp: traitlets.List[Any] = traitlets.List().tag(sync=True)
        """The name of the picture, and the number of its last delta."""
        control = traitlets.Bool().tag(sync=True)
        job = traitlets.Unicode().tag(sync=True)

    found = FarmWidget(job=job, control=feed.control)
    _answer_beside_cells(found)
    page = WidgetPage(feed, found)
    found.on_msg(lambda widget, said, buffers: _run(page.answer(said)))
    _run(page.begin()).result(FIRST_S)
    return found


def _answer_beside_cells(widget: Any) -> None:
    """Let questions of the page that come by a subshell be answered there, also while a cell runs.

    ipykernel sends them where the widget has spoken last, which is the main shell. The method is ipykernel's own; a
    version without it answers questions after the cell.
    """
    comm: Any = getattr(widget, "comm", None)
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default


class WidgetPage:
    """The page of a widget: tells its frontends what happens, and answers them.  It lives in the loop's thread."""

    def __init__(self, feed: FarmFeed, widget: Any) -> None:
        self._feed = feed
        self._widget = widget
        self._whole_s = 0.0
        """When the whole picture was sent."""
        self._asked = 0

    async def begin(self) -> None:
        """Begin to follow the farm."""
        self.show()
        self._feed.open(self)
        asyncio.get_running_loop().call_later(WHOLE_AFTER_S, self.show)

    def tell(self, delta: Delta) -> None:
        """Send a delta."""
        if self._is_closed():
            return
        told = {"type": "delta", "number": delta.number, "operations": delta.operations, "at_s": time.time()}
        self._widget.send(told)
        if time.monotonic() - self._whole_s > WHOLE_EVERY_S:
            self.show()

    def show(self) -> None:
        """Send the whole picture."""
        if self._is_closed():
            return
        self._whole_s = time.monotonic()
        found = self._feed.hello(None, None)
        assert isinstance(found, dict)
        # A copy, because the fold goes on to change its own. With the stamp the page takes the picture.
        with self._widget.hold_sync():
            self._widget.picture = json.loads(json.dumps(found["picture"]))
            self._widget.stamp = [found["name"], found["number"]]

    def _is_closed(self) -> bool:
        """Return whether the widget was closed; its feed then ends by itself."""
        if self._widget.comm is not None:
            return False
        self._feed.close(self)
        return True

    async def answer(self, said: Any) -> None:
        """Answer a frontend."""
        if not isinstance(said, dict):
            return
        reply: dict[str, Any] = {"type": "answer", "page": said.get("page"), "n": said.get("n")}
        answer = {"ask": questions.ask, "act": questions.act}.get(str(said.get("type")))
        if answer is None:
            return
        if self._asked >= QUESTIONS_MAX:
            self._widget.send({**reply, "error": {"type": "ValueError", "text": "too many questions at once"}})
            return
        self._asked += 1
        try:
            reply["value"] = await answer(self._feed, said.get("what"), said.get("arguments"))
        except Exception as error:  # of the farm, or of the question: the page shows it
            reply["error"] = error_value(error)
        finally:
            self._asked -= 1
        self._widget.send(reply)


EVERY_S = 5.0
"""The state is renewed at most once in this time while tasks run: each time the notebook counts as changed."""
ENDED_S = 0.5
"""The same when the last task has ended, or the farm is gone."""
OPEN_MAX = 5
"""The largest number of states in a process that are renewed; with a further one the oldest stays as it is."""

_open: deque[SavedView] = deque()


class SavedView:
    """Renews the state of one farm in its cells. It lives in the loop's thread.

    A widget needs its kernel: in a notebook that is opened later, exported or read elsewhere it shows nothing. So the
    live view has a second output beside the widget, a table, which a notebook saves as it was last. While the widget is
    there it hides the table (``web/static/widget.js``).

    link: a link to the page (HTML), or "".
    """

    def __init__(self, feed: FarmFeed, farm: str, link: str, shell: Any) -> None:
        self._feed = feed
        self._farm = farm
        self._link = link
        self._slot = Slot(shell)
        self._key: Any = None
        """What was shown, without the time."""
        self._shown_s = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def present(self, picture: PictureData) -> None:
        """Show the state in the cell that runs now; the next changes are shown there too."""
        self._slot.again()
        self._publish(picture)

    async def begin(self) -> None:
        """Begin to renew it, unless it is renewed already."""
        if self in _open:
            return
        _open.append(self)
        if len(_open) > OPEN_MAX:
            _open.popleft().end()
        self._feed.open(self)

    def end(self) -> None:
        """Leave it as it is."""
        self._feed.close(self)
        if self._timer is not None:
            self._timer.cancel()

    # -- a page of the feed

    def tell(self, delta: Delta) -> None:
        """Renew it in a while, or at once if there is nothing left to happen."""
        self.show()

    def show(self) -> None:
        """See `tell`."""
        picture = self._feed.fold.picture.data
        # A picture that begins anew is empty for a moment, in which the state before is better than none.
        if "counts" not in picture or _key(picture) == self._key:
            return
        after_s = ENDED_S if _is_quiet(picture) else EVERY_S
        at_s = max(time.monotonic(), self._shown_s + after_s)
        loop = asyncio.get_running_loop()
        delay_s = at_s - time.monotonic()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + delay_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(delay_s, self._renew)

    def _renew(self) -> None:
        self._timer = None
        self._publish(self._feed.fold.picture.data)

    def _publish(self, picture: PictureData) -> None:
        self._key, self._shown_s = _key(picture), time.monotonic()
        self._slot.show(last_state.bundle_of(self._farm, picture, self._link))


def _key(picture: PictureData) -> Any:
    """Return what `last_state` shows of a picture, without the time."""
    return repr([picture.get(name) for name in ("counts", "status", "engine_states", "causes")]), [
        (job["name"], job["ended"], job["total"], job["failed"]) for job in picture.get("jobs", {}).values()
    ]


def _is_quiet(picture: PictureData) -> bool:
    """Return whether nothing more happens for now: no task is left, or the farm is gone."""
    counts = picture.get("counts", {})
    return picture.get("status", {}).get("state") != "up" or not (counts.get("scheduled") or counts.get("running"))
