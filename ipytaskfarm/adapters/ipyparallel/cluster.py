"""`Cluster`: a farm that a program starts: ``with Cluster(n=4) as rc: …``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from ipytaskfarm.adapters.ipyparallel.client import Client
from ipytaskfarm.core import errors
from ipytaskfarm.deployment.farm import Farm
from ipytaskfarm.settings.checks import Agents
from ipytaskfarm.system.process import usable_cores

OF_OTHER_PROCESSES = {
    "profile_dir": "profile= or cluster_id= name the farm",
    "ipython_dir": "IPYTASKFARM_HOME is the folder of farms",
    "controller": "leave it out",
    "controller_args": "the settings of a Farm are arguments here",
    "controller_ip": "give host=, as to a Farm",
    "controller_location": "give host=, as to a Farm",
    "send_engines_connection_env": "leave it out",
    "config": "the settings of a Farm are arguments here",
    "parent": "leave it out",
    "log": "give log_level=",
    "load_profile": "leave it out",
    "delay": "engines start together: leave it out",
}
"""Arguments of ipyparallel's clusters about its own processes -> what to do instead."""
LOG = logging.getLogger("ipytaskfarm.cluster")


class Cluster:
    """A farm with ipyparallel's interface.

    Each call has two names, as in ipyparallel: ``await cluster.start_cluster()``, ``cluster.start_cluster_sync()``.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        cluster_id: str = "",
        profile: str | None = None,
        engines: str | None = None,
        engine_timeout: float = 60,
        log_level: int | str = logging.WARNING,
        shutdown_atexit: bool = True,
        **options: Any,
    ) -> None:
        """Describe a farm; `start_cluster` starts it.

        Args:
            n: the number of engines; None: one for each core.
            cluster_id, profile: a name, the cluster id first; the farm keeps its tasks and results under it.  Without a
                name the farm is temporary.
            engines: "local", or a system that starts them: "slurm", "pbs", "lsf", "ssh".
            engine_timeout: seconds in which the engines must be ready.
            log_level: starts and stops are logged as ``ipytaskfarm.cluster`` if INFO is at least this level.
            shutdown_atexit: only True is possible: ``ipytaskfarm start`` starts a farm that outlives the program.
            options: settings of a `Farm`.

        Raises ValueError for arguments about ipyparallel's own processes (``controller_args``, ``delay`` …), with what
        to do instead; TypeError for unknown ones when the farm starts.
        """
        for name in options.keys() & OF_OTHER_PROCESSES.keys():
            raise ValueError(f"{name}: a farm has none of ipyparallel's processes; {OF_OTHER_PROCESSES[name]}")
        if not shutdown_atexit:
            raise ValueError("shutdown_atexit: `ipytaskfarm start` starts a farm that outlives the program")
        self.n = n
        self.cluster_id = cluster_id
        self.profile = profile
        self.engines = engines
        self.engine_timeout = engine_timeout
        self.log_level: int = logging.getLevelName(log_level) if isinstance(log_level, str) else log_level
        self._options = options
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
        name = self.cluster_id or self.profile
        self._log(f"Starting {self.n} engines")
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

    def start_engines_sync(self, n: int | None = None) -> None:
        """Start more engines."""
        with self._running().multiengine_client() as mec:
            mec.add_engines(self.n or usable_cores() if n is None else n)

    # -- stop

    def stop_engines_sync(self) -> None:
        """End all engines; the farm goes on."""
        with self._running().multiengine_client() as mec:
            mec.kill()

    def stop_engine_sync(self, engine_id: int) -> None:
        """End one engine."""
        with self._running().multiengine_client() as mec:
            mec.kill(targets=engine_id)

    def restart_engines_sync(self) -> None:
        """End all engines, and start as many."""
        with self._running().multiengine_client() as mec:
            count = len(mec)
            mec.kill()
            mec.add_engines(count)

    def signal_engines_sync(self, signum: int | str) -> None:
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
            self._log("Stopping the farm")
            self.farm.stop(drain=0)
            self.farm = None

    stop_controller_sync = stop_cluster_sync

    def _log(self, text: str) -> None:
        if self.log_level <= logging.INFO:
            if not LOG.hasHandlers():
                LOG.addHandler(logging.StreamHandler())
            LOG.setLevel(logging.INFO)
            LOG.info(text)

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
