"""Where Jupyter's server shows a farm, for the kernels that it has started.

The server extension puts the path of its pages into the environment, which kernels inherit. The path has the prefix of
a hub or a proxy, and no host: a link to it is right wherever the notebook is seen.
"""

from __future__ import annotations

import html
import os
from urllib.parse import urlencode

from . import farm_paths

PAGES = "IPYTASKFARM_PAGES"
"""Environment variable: the server's process id, a colon, and the path of its pages."""


def announce(path: str) -> None:
    """Tell the kernels of this server where its pages are."""
    os.environ[PAGES] = f"{os.getpid()}:{path}"


def page_path(farm: str, job: str = "") -> str:
    """Return the path of a farm's page on the server that has started this kernel; "": no server shows it.

    A farm that is known by its address alone has no connection file here, and the server does not find it.
    """
    pid, _, path = os.environ.get(PAGES, "").partition(":")
    # A server inside a terminal of another one has inherited the variable, and may be without the extension.
    if not path.startswith("/") or pid != os.environ.get("JPY_PARENT_PID"):
        return ""
    try:
        if not farm_paths.connection_path(farm).exists():
            return ""
    except ValueError:
        return ""
    return f"{path}?{urlencode({'farm': farm, **({'job': job} if job else {})})}"


def page_link(path: str) -> str:
    """Return a link to a page as HTML; "" for no page."""
    return f'<a href="{html.escape(path)}" target="_blank">live view</a>' if path else ""
