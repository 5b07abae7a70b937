"""`Cluster`: a farm that a program starts: ``with Cluster(n=4) as rc: …``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from ipytaskfarm.adapters.ipyparallel.client import Client
from ipytaskfarm.core import errors
from ipytaskfarm.deployment.farm import Farm
from ipytaskfarm.settings.checks import Agents
from ipytaskfarm.system.process import usable_cores

LOCAL = ("local", None)
NEVER_MEANT = frozenset({
    "log_level", "profile", "profile_dir", "shutdown_atexit", "controller", "controller_ip", "controller_location",
    "controller_args", "send_engines_connection_env", "config", "parent", "log", "load_profile", "ipython_dir",
})  # fmt: skip
"""Arguments of ipyparallel's clusters about its own processes.  They are accepted, and have no meaning on a farm."""


class Cluster:
    """A farm with ipyparallel's interface.

    Each call has two names, as in ipyparallel: ``await cluster.start_cluster()``, ``cluster.start_cluster_sync()``.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        cluster_id: str = "",
        engines: str | None = None,
        delay: float = 0.0,
        engine_timeout: float = 60,
        **options: Any,
    ) -> None:
        """Describe a farm; `start_cluster` starts it.

        Args:
            n: the number of engines; None: one for each core.
            cluster_id: a name; the farm keeps its tasks and results under it.  "": a temporary farm.
            engines: "local", or a system that starts them: "slurm", "pbs", "lsf", "ssh".
            delay: not needed: engines start together.
            engine_timeout: seconds in which the engines must be ready.
            options: settings of a `Farm`.  Arguments of ipyparallel's own processes (``controller_args``, ``log_level``
                …) are accepted and have no meaning here.
        """
        self.n = n
        self.cluster_id = cluster_id
        self.engines = engines
        self.delay = delay
        self.engine_timeout = engine_timeout
        self._options = {name: value for name, value in options.items() if name not in NEVER_MEANT}
        self.farm: Farm | None = None
        """The farm while it runs."""
        self._client: Client | None = None

    def __repr__(self) -> str:
        state = "running" if self.farm is not None else "not started"
        return f"<Cluster(cluster_id={self.cluster_id!r}, n={self.n}): {state}>"

    # -- start

    def start_cluster_sync(self, n: int | None = None) -> Cluster:
        """Start the farm and its engines; return the cluster."""
        if self.farm is not None:
            raise RuntimeError(f"{self!r} was started already")
        self.n = n or self.n or usable_cores()
        name = self.cluster_id or None
        if self.engines is None or self.engines.lower() == "local":
            self.farm = Farm(self.n, name, **self._options)
        else:
            self.farm = Farm(0, name, agents=Agents(self.engines.lower(), self.n), **self._options)
        return self

    def connect_client_sync(self, **options: Any) -> Client:
        """Return a `Client` of the farm."""
        farm = self._running()
        return Client(str(farm.connection_file), cluster=self, **options)

    def start_and_connect_sync(self, n: int | None = None, activate: bool = False) -> Client:
        """Start the farm, wait for its engines, and return a `Client`; activate: register ``%px`` for it."""
        if self.farm is None:
            self.start_cluster_sync(n)
        client = self.connect_client_sync()
        client.wait_for_engines(self.n, timeout=self.engine_timeout)
        if activate:
            client.activate()
        return client

    def start_engines_sync(self, n: int | None = None, engine_set_id: Any = None) -> None:
        """Start more engines."""
        with self._running().multiengine_client() as mec:
            mec.add_engines(self.n or usable_cores() if n is None else n)

    # -- stop

    def stop_engines_sync(self, engine_set_id: Any = None) -> None:
        """End all engines; the farm goes on."""
        with self._running().multiengine_client() as mec:
            mec.kill()

    def stop_engine_sync(self, engine_id: int) -> None:
        """End one engine."""
        with self._running().multiengine_client() as mec:
            mec.kill(targets=engine_id)

    def restart_engines_sync(self, engine_set_id: Any = None) -> None:
        """End all engines, and start as many."""
        with self._running().multiengine_client() as mec:
            count = len(mec)
            mec.kill()
            mec.add_engines(count)

    def signal_engines_sync(self, signum: int | str, engine_set_id: Any = None) -> None:
        """Send a signal to all engines."""
        client = self.connect_client_sync()
        client.send_signal(signum)
        client.close()

    def signal_engine_sync(self, signum: int | str, engine_id: int) -> None:
        """Send a signal to one engine."""
        client = self.connect_client_sync()
        client.send_signal(signum, engine_id)
        client.close()

    def stop_cluster_sync(self) -> None:
        """Stop the farm, and wait until it is gone.  A farm that does not run is left alone."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self.farm is not None:
            self.farm.stop(drain=0)
            self.farm = None

    stop_controller_sync = stop_cluster_sync

    def _running(self) -> Farm:
        if self.farm is None:
            raise errors.FarmNotRunning(f"{self!r}: start_cluster_sync() starts it")
        return self.farm

    # -- the same for asyncio

    def __getattr__(self, name: str) -> Any:
        """Return the coroutine function for the name of a call without ``_sync``."""
        call: Callable[..., Any] | None = getattr(type(self), f"{name}_sync", None) if name[:1] != "_" else None
        if call is None:
            raise AttributeError(f"a Cluster has no attribute {name!r}")

        async def in_thread(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(None, partial(call, self, *args, **kwargs))

        in_thread.__name__ = name
        return in_thread

    # -- with

    def __enter__(self) -> Client:
        self._client = self.start_and_connect_sync()
        return self._client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_cluster_sync()

    async def __aenter__(self) -> Client:
        return await asyncio.get_running_loop().run_in_executor(None, self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.stop_cluster_sync)
