"""`Farm`: starts, connects to and stops a farm from Python."""

from __future__ import annotations

import atexit
import html
import os
import secrets
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from ipytaskfarm.core import errors
from ipytaskfarm.core.arguments import check_seconds
from ipytaskfarm.core.text import did_you_mean, last_line
from ipytaskfarm.deployment import agent_groups
from ipytaskfarm.deployment.home import TEMPORARY_NAME, Home
from ipytaskfarm.deployment.settings import farm_settings
from ipytaskfarm.deployment.start_errors import last_error, with_remedy
from ipytaskfarm.deployment.supervisor import FarmPhase, Supervisor
from ipytaskfarm.display.farm_tables import engine_table, ready_engines
from ipytaskfarm.settings.checks import Agents, check_agents
from ipytaskfarm.settings.declarations import FarmArguments, with_settings
from ipytaskfarm.system import process
from ipytaskfarm.system.farm_paths import check_name
from ipytaskfarm.system.files import tail
from ipytaskfarm.system.live_pages import page_link, page_path
from ipytaskfarm.system.process import usable_cores
from ipytaskfarm.system.supervision import note_supervised

if TYPE_CHECKING:
    from ipytaskfarm.client import MultiEngineClient, TaskClient
    from ipytaskfarm.core.messages.tables import FarmState

STABLE_S = 0.5
"""Engines that start together come up within this time of one another."""
AT_EXIT_S = 30.0
SHOW_AFTER_S = 0.5
"""A start that takes longer shows how many engines are there."""

_living: weakref.WeakSet[Farm] = weakref.WeakSet()


@with_settings
class Farm:
    """A task farm on this machine: ``with Farm(n=4) as farm: tc = farm.task_client()``.

    Without a name the farm is temporary. It has a folder of its own. All its processes and files disappear when `stop`
    is called, when the ``with`` block or the interpreter ends, or when the interpreter is killed. With a name, it is
    the farm that ``ipytaskfarm start --farm NAME`` starts: tasks and results are kept for the next time.

    The constructor returns when the engines are ready.

    {settings}

    Raises:
        FarmExists: another process supervises a farm of this name.
        StoreError: its store cannot be used.
        NoEnginesRegistered: no engine came up.
    """

    def __init__(
        self,
        n: int | None = None,
        name: str | None = None,
        startup: str | os.PathLike[str] | None = None,
        queue_policy: str | type | object | None = None,
        **settings: Unpack[FarmArguments],
    ) -> None:
        leading = {"n": n, "startup": startup, "queue_policy": queue_policy}
        own_name = f"{TEMPORARY_NAME}-{os.getpid()}-{secrets.token_hex(3)}" if name is None else check_name(name)
        self._settings = farm_settings({**leading, **settings}, own_name, usable_cores, owned=name is None)
        for agents in self._settings.agents:  # a wrong name is refused before anything is started
            agent_groups.launcher_of(agents)
        self._prepare()

    @classmethod
    def from_dask(cls, client: Any, engines_per_worker: int = 1, **farm: Any) -> Farm:
        """Return a farm with its engines beside the workers of a Dask cluster, whatever started that cluster.

        There is one agent on each machine that has workers. Engines come and go with the workers, and end with the
        cluster at the latest. The call returns when they are ready.

        Args:
            client: a connected `distributed.Client`. It is used until the farm has stopped.
            engines_per_worker: the number of engines for each worker.
            farm: further arguments of `Farm`. If the cluster has other machines than this one, ``host`` is the address
                on which
                the controller listens for them: an address of this machine that they reach, or ``"0.0.0.0"``.

        Raises:
            LauncherError: distributed is missing, or the workers cannot run agents that reach this farm.
        """
        from ipytaskfarm.launchers.dask.launcher import Dask

        launcher = Dask.of_client(client, engines_per_worker)
        agents = Agents("dask", options=launcher.options)
        agent_groups.use(agents, launcher)
        made = cls(**{"n": 0, **farm, "agents": (agents, *check_agents("agents", farm.get("agents")))})
        made._until_gone.append(lambda: agent_groups.use_no_more(agents))
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        made.await_engines(made._settings.engines + workers * engines_per_worker, made._settings.start_timeout_s)
        return made

    def __getattr__(self, name: str) -> Any:
        if name in _IN_PLACE_OF:
            raise AttributeError(f"a Farm has no attribute {name!r}; instead: {_IN_PLACE_OF[name]}")
        if not name.startswith("_"):
            from ipytaskfarm.client import MultiEngineClient, TaskClient

            for owner, maker in ((TaskClient, "task_client"), (MultiEngineClient, "multiengine_client")):
                if hasattr(owner, name):
                    raise AttributeError(f"a Farm has no {name!r}: its client has, farm.{maker}().{name}")
        raise AttributeError(f"a Farm has no attribute {name!r}{did_you_mean(name, dir(type(self)))}")

    def _prepare(self) -> None:
        _refuse_in_bootstrap()
        name = self._settings.name
        agents = bool(self._settings.agents)
        self._home = Home.temporary(name, with_agents=agents) if self._settings.owned else Home.of(name)
        self._start()

    def _start(self) -> None:
        self._ready, self._ended = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._until_gone: list[Callable[[], None]] = []
        self._supervisor = Supervisor(self._settings, self._home, _Listener(self._ready), in_python=True)
        # Not in the thread, so that errors in `start` are raised here, with the user's own frames.
        process.farm_began_with = dict(os.environ)
        self._supervisor.start()
        thread = threading.Thread(target=self._supervise, name=f"ipytaskfarm {self.name}", daemon=True)
        thread.start()
        _living.add(self)
        try:
            self._await_ready()
        except BaseException:
            # Ctrl-C while the engines come up.
            self.stop(drain=0)
            raise
        failure = self._supervisor.error or self._failure
        if failure is not None:
            self._ended.wait(AT_EXIT_S)
            raise failure
        state = self._supervisor.state
        missing = self._settings.engines_at_start - (ready_engines(state) if state is not None else 0)
        # Agents on other machines may have to wait for their turn.
        if missing == self._settings.engines_at_start > 0 and not self._settings.agents:
            why = self._why_no_engine()
            self.stop(drain=0)
            raise errors.NoEnginesRegistered(f"none of {missing} engines came up: {why}")
        if missing > 0:
            why = f": {cause}" if (cause := self._supervisor.starts.cause) else ""
            text = f"{missing} of {self._settings.engines_at_start} engines of {self!r} have not come up{why}"
            warnings.warn(text, stacklevel=3)
        if state is not None and state.refusing and not state.stopping:
            warnings.warn(f"no task is accepted: {state.refusing}", stacklevel=3)

    def _why_no_engine(self) -> str:
        """Return the reason; called before the farm is stopped, because a temporary farm's logs disappear with it."""
        if cause := self._supervisor.starts.cause:
            return cause
        waited = f"they were waited for {self._settings.start_timeout_s:g} s, and none of them failed"
        if last := last_error(self._home.log("agent-0")) or last_line(tail(self._home.output("agent-0"))):
            return f"{waited}; the agent's last word is: {with_remedy(last)}"
        return f"{waited}: the machine may be busy, give start_timeout more"

    def _await_ready(self) -> None:
        began_s = time.monotonic()
        if self._ready.wait(SHOW_AFTER_S):
            return
        from ipytaskfarm.client.progress import CountedWork, ProgressDisplay

        def ready() -> int:
            state = self._supervisor.state
            return ready_engines(state) if state is not None else 0

        starting = CountedWork(lambda: self._settings.engines_at_start, ready, self._why_not_ready)
        with ProgressDisplay(starting, "engines ready", True, f"farm {self.name}", False, began_s) as display:
            while not self._ready.wait(0.25):
                display.tick()

    def _why_not_ready(self) -> str:
        """Return what the engines are waited for: what goes wrong, and how far the preparation of each has come."""
        state = self._supervisor.state
        notes = [f"engine {row.id}: {row.note}" for row in state.engines if row.note] if state is not None else []
        return "\n".join([cause] if (cause := self._supervisor.starts.cause) else notes)

    def _supervise(self) -> None:
        note_supervised(self._home.folder, True)
        try:
            self._supervisor.run()
        except Exception as error:  # `_start` raises it again, or it is printed here: there is no one else to report to
            self._failure = error
            if self._ready.is_set():
                print(f"ipytaskfarm: farm {self.name!r} has ended: {error}", file=sys.stderr)
        finally:
            note_supervised(self._home.folder, False)
            for undo in self._until_gone:
                undo()
            self._ended.set()
            self._ready.set()

    @property
    def name(self) -> str:
        """Return the farm's name; a temporary farm has one too."""
        return self._settings.name

    @property
    def connection_file(self) -> Path:
        """Return the connection file of clients: ``TaskClient(farm.connection_file)`` works in any process of this
        user.
        """
        return self._home.client_file

    def __fspath__(self) -> str:
        """Return the path of the connection file, so that ``TaskClient(farm)`` is a client of this farm, and so is
        all else that takes the path of a connection file.

        Raises FarmNotRunning if the farm was stopped.
        """
        self._must_run()
        return str(self.connection_file)

    @property
    def state(self) -> FarmState | None:
        """Return the controller's latest report, at most a second old; None before the farm runs and after it has
        stopped.
        """
        return self._supervisor.state if self._supervisor.phase is FarmPhase.RUNNING else None

    def task_client(self) -> TaskClient:
        """Return a `TaskClient` of this farm. All clients of one process share one session."""
        from ipytaskfarm.client import TaskClient

        self._must_run()
        return TaskClient(self)

    def multiengine_client(self) -> MultiEngineClient:
        """Return a `MultiEngineClient` of this farm."""
        from ipytaskfarm.client import MultiEngineClient

        self._must_run()
        return MultiEngineClient(self)

    def view(self) -> Any:
        """Return the live view of this farm for a notebook's cell; see `TaskClient.view`."""
        from ipytaskfarm.client.adapters import live_view
        from ipytaskfarm.system.farm_paths import connection_reader

        self._must_run()
        return live_view(connection_reader(str(self.connection_file)))

    def checkpoint(self) -> list[dict[str, str]]:
        """Save the names of all engines, each after the task that it runs: engines that come in their place have them.

        Returns:
            For each engine a dict of the names that cannot be saved, each with the reason; see
            `MultiEngineClient.checkpoint`.
        """
        with self.multiengine_client() as mec:
            found: list[dict[str, str]] = mec.checkpoint(block=True)
        return found

    def _must_run(self) -> None:
        if self._ended.is_set() or self._supervisor.phase > FarmPhase.RUNNING:
            raise errors.FarmNotRunning(f"{self!r}: make a new Farm")

    def await_engines(
        self, count: int | None = None, connect_timeout: float = 5, stable_timeout: float = 60
    ) -> list[int]:
        """Wait for at least `count` engines, or until no more come; return their ids (bndl's ``await_workers``).

        Args:
            count: the least number of engines; None to wait until no more come.
            connect_timeout: seconds within which the first engine must be up.
            stable_timeout: seconds after which the present engines are enough.

        Raises:
            NoEnginesRegistered: no engine was up within `connect_timeout`.
        """
        from ipytaskfarm.client.operate import STABLE_S, wait_for_engines
        from ipytaskfarm.client.progress import CountedWork, ProgressDisplay

        there: list[int] = []
        starting = CountedWork(lambda: count or len(there), lambda: len(there), self._why_not_ready)
        with ProgressDisplay(starting, "engines ready", name=f"farm {self.name}", counts_states=False) as display:

            def look() -> list[int]:
                self._must_run()
                state = self._supervisor.state
                rows = state.engines if state is not None else []
                there[:] = [row.id for row in rows if row.state in ("idle", "busy")]
                display.tick()
                return list(there)

            # The supervisor looks once a second: half a second cannot show that nothing changes.
            return wait_for_engines(look, repr(self), count, connect_timeout, stable_timeout, STABLE_S + 1.0)

    def add_agents(self, agents: Agents | str) -> str:
        """Place agents on other machines, each with engines of its own, and return the name of their group.

        The call returns when the launcher's system has accepted them, possibly long before they run. For a batch
        system, make the farm with a name or with ``agents``: the files of other farms are in this machine's /tmp, which
        nodes do not see.

        Raises:
            LauncherError: the system refuses. The message has its words.
            ValueError: the request is invalid.
        """
        self._must_run()
        (asked,) = check_agents("agents", agents)
        return agent_groups.add(self._home, asked).name

    def remove_agents(self, *names: str, drain: float | timedelta | None = None) -> None:
        """Remove agents by their names or their groups' names, and return when they are gone.

        Args:
            names: names of agents or groups.
            drain: seconds for which running tasks may go on; None: until they end. After that, a task goes back to its
                queue if
                it may be repeated, and fails otherwise.

        Raises:
            ValueError: there is no agent or group of that name.
        """
        self._must_run()
        agent_groups.remove(self._home, names, check_seconds("drain", drain))

    def stop(self, drain: float | timedelta | EllipsisType | None = ...) -> None:
        """Stop the farm and wait until it is gone. A second call does nothing.

        Args:
            drain: seconds for which running tasks may go on; None: until they end; default: the farm's setting.
        """
        if self._ended.is_set():
            return
        self._end_session()
        if drain is ...:
            self._supervisor.request_stop()
        else:
            self._supervisor.request_stop(check_seconds("drain", drain), default=False)
        try:
            self._ended.wait()
        except KeyboardInterrupt:
            self._supervisor.request_stop(0.0, default=False)  # the second request means: do not wait
            self._ended.wait()
            raise

    def _end_session(self) -> None:
        """End this process's session with a temporary farm: its tasks disappear, so nothing must wait for them."""
        sessions = sys.modules.get("ipytaskfarm.client.sessions")
        if self._settings.owned and sessions is not None and self._supervisor.state is not None:
            sessions.end_farm(self._supervisor.state.incarnation)

    def __enter__(self) -> Farm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error nobody will look at tasks that still run.
        if kind is None:
            self.stop()
        else:
            self.stop(drain=0)
        if self._settings.owned and kind is not None and issubclass(kind, KeyboardInterrupt) and sys.stderr is not None:
            # What was interrupted has just said that its tasks go on.
            text = (
                'the temporary farm has ended, and its tasks with it; those of a farm with a name, Farm("name"), go on'
            )
            print(f"ipytaskfarm: {text}", file=sys.stderr, flush=True)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"farm {self.name!r} cannot be pickled: its processes are children of this one. Keep its name")

    def __repr__(self) -> str:
        phase, state = self._supervisor.phase, self._supervisor.state
        what = "temporary farm" if self._settings.owned else "farm"
        if phase >= FarmPhase.STOPPING:
            return f"<{what} {self.name!r}: {'stopped' if phase is FarmPhase.ENDED else 'stopping'}>"
        if phase < FarmPhase.RUNNING or state is None:
            return f"<{what} {self.name!r}: starting>"
        counts = state.counts
        scheduled = counts.get("scheduled", 0)
        tasks = f"{scheduled} task{'' if scheduled == 1 else 's'} scheduled, {counts.get('pending', 0)} running"
        paused = ", paused" if state.held else ""
        open_to = f", {self._supervisor.listening}" if self._supervisor.listening else ""
        return f"<{what} {self.name!r}: {ready_engines(state)} of {state.wanted} engines, {tasks}{paused}{open_to}>"

    def _repr_html_(self) -> str:
        state = self.state
        link = page_link(page_path(self.name)) if state is not None else ""
        head = f"<div>{html.escape(repr(self)[1:-1])}{f' · {link}' if link else ''}</div>"
        if state is None:
            return head
        return head + engine_table(state.engines).html()


_IN_PLACE_OF = {
    **dict.fromkeys(("close", "shutdown", "terminate", "kill"), "farm.stop()"),
    **dict.fromkeys(("client", "get_client"), "farm.task_client()"),
    **dict.fromkeys(("scale", "adapt"), "farm.multiengine_client().add_engines(n), or Farm(min=…, max=…)"),
}
"""Names that other libraries' clusters have -> what to write."""


def _refuse_in_bootstrap() -> None:
    """Refuse to start a farm in a process that imports a module, and would start farms without end by that: in a child
    of multiprocessing the main module, on an engine a module with a function that it runs.

    Raises:
        RuntimeError: this is such a process.
    """
    if process.importing:
        raise RuntimeError(
            f"an engine imports the module {process.importing[-1]!r}, which makes a Farm there: put that into a "
            'function, or below `if __name__ == "__main__":`'
        )
    module = sys.modules.get("multiprocessing.process")
    if module is not None and getattr(module.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a process of multiprocessing imports the main module, which makes a Farm there:"
            ' put that below `if __name__ == "__main__":`'
        )


class _Listener:
    """A listener of the supervisor that only records when the farm is ready."""

    def __init__(self, is_ready: threading.Event) -> None:
        self._is_ready = is_ready

    def progress(self, text: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def ready(self, state: FarmState) -> None:
        self._is_ready.set()


def _stop_all() -> None:
    """Stop the remaining farms at the interpreter's end."""
    living = [farm for farm in _living if not farm._ended.is_set()]
    for farm in living:
        farm._end_session()
    sessions = sys.modules.get("ipytaskfarm.client.sessions")
    if living and sessions is not None:
        # Tasks that were submitted to a named farm must be accepted before the farm ends. Whether the client's exit
        # handler runs before or after this one depends on the order of imports.
        sessions._at_exit()
    for farm in living:
        farm._supervisor.request_stop(0.0, default=False)
    for farm in living:
        farm._ended.wait(AT_EXIT_S)


def _in_child_process() -> None:
    # A forked child has no supervising thread. It must neither stop the parent's farms nor keep them alive.
    for farm in list(_living):
        farm._supervisor.in_child_process()
        farm._ended.set()
    _living.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_in_child_process)
