"""Agents on the machines of a Dask cluster, whatever started it (LocalCluster, ssh, a batch system, Kubernetes).

A `WorkerPlugin` runs one agent on each machine that has workers, under the one key of its group. The plugin is sent to
new workers, restored after a worker was killed, and ends with the cluster. This launcher places nothing itself.

The agents' connection file, a secret, travels inside Dask's own messages, and is written on each worker's machine to a
file of 0600 in a folder of 0700. Dask's messages are not encrypted unless configured (``security=``, TLS): use that
where its network is not trusted. Anyone who can speak to its scheduler can run code on its workers in any case.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.system.farm_paths import ConnectionInfo, read_connection_file, read_private
from ipytaskfarm.version import __version__

from ..interface import AgentSpec, AgentStatus, Handle, Seat, elsewhere
from .agent_owner import AgentPlan

ANSWER_S = 10.0
"""The time within which the scheduler must answer."""
ENDED = AgentStatus("ended", why="the scheduler does not know of it: the cluster is another, or it was cancelled")


class Dask:
    """The launcher ``dask``; it implements `Launcher`.

    `Dask.of_client` makes one that uses an existing client, for this process only.
    """

    OPTIONS: ClassVar[Mapping[str, str]] = {
        "scheduler": "the address of Dask's scheduler: tcp://host:8786",
        "engines_per_worker": "engines for each of a machine's workers (default: as many as the submission says)",
    }

    def __init__(self, options: Mapping[str, str]) -> None:
        """Create the launcher from its options.

        Raises:
            ValueError: no scheduler is given, or a number is invalid.
            LauncherError: distributed is not installed.
        """
        self._address = options.get("scheduler", "")
        if not self._address:
            raise ValueError("the option scheduler is needed: scheduler=tcp://host:8786")
        given = options.get("engines_per_worker", "")
        if given and not (given.isdecimal() and int(given) > 0):
            raise ValueError(f"engines_per_worker={given!r}: a number of at least 1 was expected")
        self._per_worker = int(given) if given else None
        self._client: Any = None
        self.options = dict(options)
        distributed()

    @classmethod
    def of_client(cls, client: Any, engines_per_worker: int | None = None) -> Dask:
        """Return the launcher for the cluster of a connected `distributed.Client`, which still belongs
        to the caller.
        """
        options = {"scheduler": str(client.scheduler.address)}
        if engines_per_worker is not None:
            options["engines_per_worker"] = str(engines_per_worker)
        made = cls(options)
        made._client = client
        return made

    def names(self, group: str, count: int | None) -> list[str]:
        """Return the name of the group: its agents call themselves ``GROUP.HOST``, one for each machine
        with workers.
        """
        if count not in (None, 1):
            raise ValueError(f"{count} agents were requested: with Dask there is one on each machine that has workers")
        return [group]

    def preview(self, seats: Sequence[Seat], spec: AgentSpec) -> str:
        """Describe the agents in words: there is no script."""
        engines = f"{spec.engines} engines" if spec.engines is not None else "as many engines as it has cores"
        if self._per_worker is not None:
            engines = f"{self._per_worker} engines for each worker"
        return "".join(
            f"register a worker plugin for {seat.name} with Dask's scheduler {self._address}: one agent on each machine"
            f" that has workers, with {engines}\n"
            for seat in seats
        )

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        """Register the plugin."""
        (seat,) = seats
        with self._connected() as client:
            return launch(client, seat, spec, self._per_worker)

    def status(self, handle: Handle) -> dict[str, AgentStatus]:
        """Return the scheduler's view. Without a scheduler there are no workers, so the agents have ended."""
        try:
            with self._connected() as client:
                return look(client, handle)
        except LauncherError as error:
            return {handle["name"]: AgentStatus("ended", why=str(error))}

    def cancel(self, handle: Handle, names: Sequence[str] | None = None) -> None:
        """Unregister the plugin: agents get SIGTERM, and SIGKILL when their running tasks have had their time."""
        if names is not None and handle["name"] not in names:
            return
        try:
            with self._connected() as client:
                end(client, handle)
        except LauncherError:
            pass  # without a scheduler there are no workers

    def tend(self, handle: Handle) -> Handle:
        """Pass on new keys. Dask itself keeps the workers running, and the workers keep the agents running."""
        path = Path(handle["connection_file"])
        if _digest(path) == handle["sent"]:
            return handle
        with self._connected() as client:
            return launch(client, Seat(handle["name"], path), _spec(handle["spec"]), handle["per_worker"])

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        if self._client is not None:
            if self._client.status != "running":
                raise LauncherError(f"the Dask client of {self._address} is {self._client.status}")
            yield self._client
            return
        try:
            client = distributed().Client(self._address, timeout=ANSWER_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise LauncherError(
                f"no Dask scheduler answers at {self._address} ({error or type(error).__name__}): look whether it runs,"
                " and whether this machine reaches it"
            ) from None
        try:
            yield client
        finally:
            client.close()


def distributed() -> Any:
    """Return the package.

    Raises:
        LauncherError: it is not installed.
    """
    try:
        import distributed as found
    except ImportError as error:
        raise LauncherError(f"Dask's distributed is needed here ({error}): pip install 'ipytaskfarm[dask]'") from None
    return found


def launch(client: Any, seat: Seat, spec: AgentSpec, engines_per_worker: int | None = None) -> Handle:
    """Run an agent on each machine where the client's cluster has workers, now and later.

    Args:
        client: a connected `distributed.Client`.
        seat: the agents' name and connection file.
        spec: the settings of the agents.
        engines_per_worker: engines of an agent per worker on its machine; None for the number in `spec`.

    Raises:
        LauncherError: workers lack this package, or cannot reach the controller.
    """
    info = read_connection_file(seat.connection_file)
    _check_workers(client, info)
    name = _plugin_name(info, seat)
    plan = AgentPlan(
        seat.name, info.incarnation, read_private(seat.connection_file).decode(), spec, per_process=engines_per_worker
    )
    from .plugin import AgentPlugin

    try:
        client.register_plugin(AgentPlugin(plan, name), name=name)
    except Exception as error:  # an error that a worker raised
        client.unregister_worker_plugin(name)
        raise LauncherError(f"Dask's workers do not take the plugin: {type(error).__name__}: {error}") from error
    return {
        "name": seat.name, "plugin": name, "connection_file": str(seat.connection_file),
        "sent": _digest(seat.connection_file), "per_worker": engines_per_worker,
        "spec": {**vars(spec), "cwd": str(spec.cwd), "logs": str(spec.logs), "flags": list(spec.flags)},
    }  # fmt: skip


def _spec(stored: Mapping[str, Any]) -> AgentSpec:
    paths = {"cwd": Path(stored["cwd"]), "logs": Path(stored["logs"])}
    return AgentSpec(**{**stored, **paths, "flags": tuple(stored["flags"])})


def look(client: Any, handle: Handle) -> dict[str, AgentStatus]:
    """Return the states of a handle's agents, as the workers reported them with their last heartbeats."""
    said: dict[str, list[tuple[str, str]]] | None = _asked(lambda: client.run_on_scheduler(_looker(handle["plugin"])))
    return {handle["name"]: _status(said)}


def _status(said: Mapping[str, Sequence[tuple[str, str]]] | None) -> AgentStatus:
    """Return the status from host -> reports of its workers; None means that the scheduler does not know the plugin."""
    if said is None:
        return ENDED
    hosts = {state: [host for host in said if state in dict(said[host])] for state in ("running", "waiting", "ended")}
    if hosts["running"]:
        return AgentStatus("running", ", ".join(hosts["running"]))
    if hosts["ended"] and not hosts["waiting"]:
        return AgentStatus("ended", ", ".join(hosts["ended"]), dict(said[hosts["ended"][0]])["ended"])
    if not said:
        return AgentStatus("waiting", why="the cluster has no workers")
    whys = [dict(said[host])["waiting"] for host in hosts["waiting"]]
    return AgentStatus("waiting", ", ".join(hosts["waiting"]), whys[0] if whys else "its workers have not said yet")


def end(client: Any, handle: Handle) -> None:
    """End the agents of a handle; returns when they were told.  Nothing happens if they have been before."""
    if _asked(lambda: client.run_on_scheduler(_looker(handle["plugin"]))) is not None:
        _asked(lambda: client.unregister_worker_plugin(handle["plugin"]))


def _check_workers(client: Any, info: ConnectionInfo) -> None:
    """Check that the workers can run the agent, before it is sent to them."""
    for address, (host, version) in _asked(lambda: client.run(_version_teller())).items():
        if version != __version__:
            raise LauncherError(
                f"the Dask worker {address} on {host} has {version}: install ipytaskfarm=={__version__} where Dask's"
                " workers run"
            )
        if host != socket.gethostname() and elsewhere(info) is None:
            raise LauncherError(
                f"the Dask worker {address} is on {host}, and the controller listens on {info.host}, for this machine"
                " alone: let it listen where workers reach it (`ipytaskfarm start --host ADDRESS`)"
            )


# The functions below run in Dask's processes, which may lack this package: functions made by functions travel by value.


def _version_teller() -> Callable[[], tuple[str, str]]:
    def tell() -> tuple[str, str]:
        import socket

        try:
            from ipytaskfarm.version import __version__
        except ImportError as error:
            return socket.gethostname(), f"no ipytaskfarm ({error})"
        return socket.gethostname(), f"{__version__}"

    return tell


def _looker(plugin: str) -> Callable[[Any], dict[str, list[tuple[str, str]]] | None]:
    def look(dask_scheduler: Any) -> dict[str, list[tuple[str, str]]] | None:
        if plugin not in dask_scheduler.worker_plugins:
            return None
        said: dict[str, list[tuple[str, str]]] = {}
        for state in dask_scheduler.workers.values():
            said.setdefault(state.host, []).append(tuple(state.metrics.get(plugin) or ("", "")))
        return said

    return look


def _asked(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except (OSError, TimeoutError, RuntimeError) as error:
        raise LauncherError(f"Dask's scheduler does not answer: {type(error).__name__}: {error}") from error


def _plugin_name(info: ConnectionInfo, seat: Seat) -> str:
    return f"ipytaskfarm-{info.farm}-{info.incarnation[:8]}-{seat.name}"


def _digest(path: Path) -> str:
    """Return a digest of the relevant fields of a connection file, which a restarted controller rewrites."""
    info = read_connection_file(path)
    told = (info.host, info.port, info.location, info.server_key, info.public_key, info.secret_key)
    return hashlib.sha256(repr(told).encode()).hexdigest()
