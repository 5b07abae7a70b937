"""Proxies that people put before Jupyter's server: nginx with buffering, and configurable-http-proxy of JupyterHub."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.browser import END_S, START_S, free_port
from tests.support.polling import eventually

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    gzip on; gzip_types application/json text/javascript;
    proxy_buffering on; proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 128k;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{target};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""


def nginx_path() -> str | None:
    """Return the path of nginx, which Debian keeps from the PATH of users; None: it is not installed."""
    return shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


def hub_proxy_path() -> str | None:
    """Return the path of configurable-http-proxy; None: it is not installed."""
    return shutil.which("configurable-http-proxy")


@contextmanager
def nginx(target: int, port: int, folder: Path) -> Iterator[None]:
    """Nginx at a port, before another port of this machine."""
    path = nginx_path()
    assert path is not None
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, target=target))
    with _running([path, "-c", str(config), "-p", str(folder)], port, {}):
        yield


@contextmanager
def hub_proxy(target: int, port: int) -> Iterator[None]:
    """The proxy of JupyterHub at a port, before another port of this machine."""
    path = hub_proxy_path()
    assert path is not None
    command = [
        path, "--ip=127.0.0.1", f"--port={port}", "--api-ip=127.0.0.1", f"--api-port={free_port()}",
        f"--default-target=http://127.0.0.1:{target}", "--log-level=error",
    ]  # fmt: skip
    with _running(command, port, {"CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(16)}):
        yield


@contextmanager
def _running(command: Sequence[str], port: int, variables: Mapping[str, str]) -> Iterator[None]:
    """Run a server until the end of the block, or of this process."""
    words = ["setpriv", "--pdeathsig", "TERM", "--", *command]
    environment = {**os.environ, **variables}
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environment) as server:

        def listens() -> bool:
            assert server.poll() is None, f"{command[0]} has ended"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            eventually(listens, START_S, every_s=0.05, what=f"{command[0]} listens")
            yield
        finally:
            server.terminate()
            try:
                server.wait(END_S)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
