"""`Farm`: a farm from Python.  It starts, connects, stops."""

from __future__ import annotations

import atexit
import html
import os
import secrets
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from ipytaskfarm.core import errors
from ipytaskfarm.core.arguments import check_bytes, check_count, check_seconds
from ipytaskfarm.core.formatting import last_line, ready_engines
from ipytaskfarm.deployment.home import TEMPORARY_NAME, Home
from ipytaskfarm.deployment.settings import (
    DEFAULT_HOST,
    Agents,
    FarmSettings,
    SchedulingArguments,
    check_agents,
    check_scheduling,
    engines_at_first,
    folder_list,
    policy_name,
    read_startup,
)
from ipytaskfarm.deployment.start_errors import last_error, tail, with_remedy
from ipytaskfarm.deployment.supervisor import FarmPhase, Supervisor
from ipytaskfarm.system.farm_paths import check_name
from ipytaskfarm.system.process import usable_cores

if TYPE_CHECKING:
    from ipytaskfarm.client import MultiEngineClient, TaskClient
    from ipytaskfarm.core.messages.tables import FarmState

STABLE_S = 0.5
"""Engines that come up together do so within this long of one another."""
AT_EXIT_S = 30.0
SHOW_AFTER_S = 1.0
"""A start that takes longer shows how many engines are there."""

_living: weakref.WeakSet[Farm] = weakref.WeakSet()


class Farm:
    """A task farm on this machine: ``with Farm(n=4) as farm: tc = farm.task_client()``.

    Without a name it is temporary: it lives in a folder of its own, and all of it, processes and files, goes when
    `stop` is called, when the ``with`` block or the interpreter ends, or when the interpreter is killed.  With a name
    it is the farm that ``ipytaskfarm start --farm NAME`` starts: tasks and results are kept for the next time.

    Returns when the engines are ready.

    n: how many engines on this machine; default: the usable cores.
    name: the farm's name, or None.
    startup: code that every fresh engine runs first, a str; or a file of such code, a `pathlib.Path`.
    queue_policy: which task goes first: ``"FIFO"`` (the default), ``"LIFO"``, ``"FairShare"``, ``"FairShareJobs"``, or
        your own `QueuePolicy`, as a class or as ``"module:Class"``.
    policy_path: folders to import it from.
    host, port: where the controller listens; default: this machine alone, the farm's own port.  ``"0.0.0.0"``: on all
        addresses, for agents and clients of other machines.
    location: the name or address by which other machines find it; default: `host`, or this host's name for all.
    store_dir: the folder for the store, on a local disk.
    unmet_timeout: seconds (or a timedelta) after which a task that no engine may run fails; default: it waits.
    failure_penalty: seconds for which an engine is withheld after a failed task; default: 0.
    grace: seconds between the interrupt of a task over its time limit and the signals that end its engine; default: 1.
    memory_limit: bytes, or text like ``"2 GiB"``, that an engine and its children may have of their own; one with more
        is ended, and its task fails with the cause named; default: as much as there is.
    max_engine_losses: a task over which so many engines were lost is quarantined, whatever its retries; default: 3.
    node_failures: a node on which so many attempts in a row failed that work elsewhere gets no more tasks; default: 10.
    keep_results, keep_results_size: results are cleared so many seconds (or a timedelta) after their task's end; the
        oldest, when the store holds more than this size; default: they stay until somebody clears them.
    record: a file for a tape of all that the controller hears, payloads included, for ``ipytaskfarm replay``.
    warm: how many free slots hold a blank engine, ready for any environment; default: all `n`.
    resources: what tasks may ask for (``resources=``) beside the cores, memory and GPUs that are found, or instead of
        them: ``{"licence": 3, "gpu": 2}``.
    placement: which of several free engines a task takes: ``"default"``, ``"priority"``, ``"least_recent"``,
        ``"most_recent"``, ``"random"``, ``"nearest_environment"``.
    load_limit, free_memory: the load guard: no task is started on a node that is busier than this share of its cores,
        or has less of its memory free (bytes, or text like ``"1 GiB"``); those with ``force=True`` are. Default: none.
    environment_patience: seconds after which a task is no longer passed over by later ones whose environment an engine
        already has; False: it always is; default: 10.
    lease: seconds after which an agent that does not hear the controller ends its engines, 5 or more; a little later
        their work is done elsewhere; default: 900, and 60 for a temporary farm.
    resource_patience: seconds after which what becomes free on a node is kept for a task that waits; default: 10.
    hold: start no task until ``ipytaskfarm resume``.
    fresh: begin anew; the store of a farm of this name is set aside.
    take_over: begin anew here with a farm whose store is on another host.
    start_timeout: seconds that the engines may take to come up.
    drain: seconds that running tasks may go on when the farm is stopped.
    agents: agents on other machines, each bringing engines of its own: ``"slurm:3"``, an `Agents`, or several.  With
        agents, `n` is 0 unless it is given.
    min, max: the number of this machine's engines follows the work that waits, within these; `n` is where it begins.
    idle: seconds (or a timedelta) after which engines that nobody needs end, with `min` and `max`; default: 60.

    Raises `FarmExists` when a farm of this name is looked after already, `StoreError` when its store cannot be used,
    and `NoEnginesRegistered` when no engine came up.
    """

    def __init__(
        self,
        n: int | None = None,
        name: str | None = None,
        startup: str | os.PathLike[str] | None = None,
        queue_policy: str | type | object | None = None,
        *,
        policy_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        host: str = DEFAULT_HOST,
        location: str | None = None,
        port: int | None = None,
        store_dir: str | os.PathLike[str] | None = None,
        unmet_timeout: float | timedelta | None = None,
        failure_penalty: float | timedelta | None = None,
        grace: float | timedelta | None = None,
        memory_limit: int | str | None = None,
        max_engine_losses: int | None = None,
        node_failures: int | None = None,
        keep_results: float | timedelta | None = None,
        keep_results_size: int | str | None = None,
        record: str | os.PathLike[str] | None = None,
        hold: bool = False,
        fresh: bool = False,
        take_over: bool = False,
        start_timeout: float | timedelta = 60.0,
        drain: float | timedelta | None = 10.0,
        agents: Agents | str | Sequence[Agents | str] = (),
        **scheduling: Unpack[SchedulingArguments],
    ) -> None:
        code, asked, scheduled = read_startup(startup), check_agents(agents), check_scheduling(**scheduling)
        self._settings = FarmSettings(
            name=f"{TEMPORARY_NAME}-{os.getpid()}-{secrets.token_hex(3)}" if name is None else check_name(name),
            engines=engines_at_first(n, scheduled.elastic, asked, usable_cores),
            agents=asked,
            owned=name is None,
            startup=code[0],
            startup_name=code[1],
            queue_policy=policy_name(queue_policy),
            policy_path=folder_list(policy_path),
            host=host,
            location=location,
            port=port,
            store_dir=None if store_dir is None else Path(store_dir).expanduser(),
            unmet_timeout_s=check_seconds("unmet_timeout", unmet_timeout),
            failure_penalty_s=check_seconds("failure_penalty", failure_penalty),
            grace_s=check_seconds("grace", grace),
            memory_limit_bytes=check_bytes("memory_limit", memory_limit),
            max_engine_losses=check_count("max_engine_losses", max_engine_losses, 1),
            node_failures=check_count("node_failures", node_failures, 5),
            keep_results_s=check_seconds("keep_results", keep_results),
            keep_results_bytes=check_bytes("keep_results_size", keep_results_size),
            record=None if record is None else Path(record).expanduser().absolute(),
            scheduling=scheduled,
            hold=hold,
            fresh=fresh,
            take_over=take_over,
            start_timeout_s=check_seconds("start_timeout", start_timeout) or 0.0,
            drain_s=check_seconds("drain", drain),
        )
        self._prepare()

    @classmethod
    def from_dask(cls, client: Any, engines_per_worker: int = 1, **farm: Any) -> Farm:
        """A farm whose engines run beside the workers of a Dask cluster, whatever started that one.

        One agent on each machine that has workers, with so many engines for each of them; as workers come and go, so do
        engines, and they end with the cluster at the latest.  Returns when they are ready.

        client: a `distributed.Client`, connected; it is used until the farm has stopped.
        farm: further arguments of `Farm`.  Where the cluster has other machines than this one, ``host`` says where the
            controller listens for them: an address of this machine that they reach, or ``"0.0.0.0"``.

        Raises `LauncherError` when distributed is missing, or the workers cannot run agents that reach this farm.
        """
        from ipytaskfarm.deployment import agent_groups
        from ipytaskfarm.launchers.dask.launcher import Dask

        launcher = Dask.of_client(client, engines_per_worker)
        agents = Agents("dask", options=launcher.options)
        agent_groups.use(agents, launcher)
        made = cls(**{"n": 0, **farm, "agents": (agents, *check_agents(farm.get("agents")))})
        made._until_gone.append(lambda: agent_groups.use_no_more(agents))
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        made.await_engines(made._settings.engines + workers * engines_per_worker, made._settings.start_timeout_s)
        return made

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
        # Not in the thread: what `start` finds wrong is raised here, with the user's own frames.
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
        # Agents elsewhere may have to wait for their turn.
        if missing == self._settings.engines_at_start > 0 and not self._settings.agents:
            why = self._why_no_engine()
            self.stop(drain=0)
            raise errors.NoEnginesRegistered(f"none of {missing} engines came up: {why}")
        if missing > 0:
            why = f": {cause}" if (cause := self._supervisor.starts.cause) else ""
            text = f"{missing} of {self._settings.engines_at_start} engines of {self!r} have not come up{why}"
            warnings.warn(text, stacklevel=3)

    def _why_no_engine(self) -> str:
        """Before the farm is stopped: a temporary one takes its logs along."""
        if cause := self._supervisor.starts.cause:
            return cause
        waited = f"they were waited for {self._settings.start_timeout_s:g} s, and none of them failed"
        if last := last_error(self._home.log("agent-0")) or last_line(tail(self._home.output("agent-0"))):
            return f"{waited}; the agent's last word is: {with_remedy(last)}"
        return f"{waited}: the machine may be busy, give start_timeout more"

    def _await_ready(self) -> None:
        if self._ready.wait(SHOW_AFTER_S):
            return
        from ipytaskfarm.client.progress import ProgressBar

        wanted = self._settings.engines_at_start
        with ProgressBar(wanted, "engine") as progress:
            while not self._ready.wait(0.25):
                state = self._supervisor.state
                progress.left(wanted - (ready_engines(state) if state is not None else 0))

    def _supervise(self) -> None:
        try:
            self._supervisor.run()
        except Exception as error:  # raised again by _start, or told here: a thread has no one else to tell
            self._failure = error
            if self._ready.is_set():
                print(f"ipytaskfarm: farm {self.name!r} has ended: {error}", file=sys.stderr)
        finally:
            for undo in self._until_gone:
                undo()
            self._ended.set()
            self._ready.set()

    @property
    def name(self) -> str:
        """The farm's name; temporary ones have one too."""
        return self._settings.name

    @property
    def connection_file(self) -> Path:
        """What clients connect by: ``TaskClient(str(farm.connection_file))`` from any process of this user."""
        return self._home.client_file

    @property
    def state(self) -> FarmState | None:
        """What the controller last said of itself, a second old at most; None before and after."""
        return self._supervisor.state if self._supervisor.phase is FarmPhase.RUNNING else None

    def task_client(self) -> TaskClient:
        """A `TaskClient` of this farm.  All clients of one process share one session."""
        from ipytaskfarm.client import TaskClient

        self._must_run()
        return TaskClient(str(self.connection_file))

    def multiengine_client(self) -> MultiEngineClient:
        """A `MultiEngineClient` of this farm."""
        from ipytaskfarm.client import MultiEngineClient

        self._must_run()
        return MultiEngineClient(str(self.connection_file))

    def _must_run(self) -> None:
        if self._ended.is_set() or self._supervisor.phase > FarmPhase.RUNNING:
            raise errors.FarmNotRunning(f"{self!r}: make a new Farm")

    def await_engines(
        self, count: int | None = None, connect_timeout: float = 5, stable_timeout: float = 60
    ) -> list[int]:
        """Wait until there are `count` engines, or until no more come; their ids (bndl's ``await_workers``).

        connect_timeout: seconds until the first engine must be there, else `NoEnginesRegistered`.
        stable_timeout: seconds after which whatever is there is enough.
        """
        from ipytaskfarm.client.operate import STABLE_S, wait_for_engines
        from ipytaskfarm.client.progress import ProgressBar

        with ProgressBar(count or 0, "engine") as progress:

            def look() -> list[int]:
                self._must_run()
                state = self._supervisor.state
                rows = state.engines if state is not None else []
                there = [row.id for row in rows if row.state in ("idle", "busy")]
                progress.left(max(0, (count or 0) - len(there)))
                return there

            # The supervisor looks once a second: half of that cannot show that nothing changes.
            return wait_for_engines(look, repr(self), count, connect_timeout, stable_timeout, STABLE_S + 1.0)

    def add_agents(self, agents: Agents | str) -> str:
        """Have agents placed on other machines, each bringing engines of its own; the name of their group.

        Returns when their system has taken them, which may be long before they run.  For a batch system, make the farm
        with a name or with ``agents``: of others the files are in this machine's /tmp, which its nodes do not see.
        Raises `LauncherError`, in the words of that system, and ValueError.
        """
        from ipytaskfarm.deployment import agent_groups

        self._must_run()
        (asked,) = check_agents(agents)
        return agent_groups.add(self._home, asked).name

    def remove_agents(self, *names: str, drain: float | timedelta | None = None) -> None:
        """Send agents away, by their names or their groups'; returns when they are gone.

        drain: how many seconds what runs there may go on (None: to its end); then it goes back to its queue if it may
        repeat, and fails if not.  ValueError: there is none of that name.
        """
        from ipytaskfarm.deployment.agent_groups import send_away

        self._must_run()
        send_away(self._home, names, check_seconds("drain", drain))

    def stop(self, drain: float | timedelta | EllipsisType | None = ...) -> None:
        """Stop the farm and wait until it is gone.  A second call does nothing.

        drain: how many seconds running tasks may go on; None: until they end; default: as the farm was made.
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
            self._supervisor.request_stop(0.0, default=False)  # the second one: no waiting
            self._ended.wait()
            raise

    def _end_session(self) -> None:
        """A temporary farm's tasks go with it: this process's session must not wait for them, nor for its return."""
        sessions = sys.modules.get("ipytaskfarm.client.sessions")
        if self._settings.owned and sessions is not None and self._supervisor.state is not None:
            sessions.end_farm(self._supervisor.state.incarnation)

    def __enter__(self) -> Farm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error, nobody will look at what still runs.
        if kind is None:
            self.stop()
        else:
            self.stop(drain=0)

    def __repr__(self) -> str:
        phase, state = self._supervisor.phase, self._supervisor.state
        what = "temporary farm" if self._settings.owned else "farm"
        if phase >= FarmPhase.STOPPING:
            return f"<{what} {self.name!r}: {'stopped' if phase is FarmPhase.ENDED else 'stopping'}>"
        if phase < FarmPhase.RUNNING or state is None:
            return f"<{what} {self.name!r}: starting>"
        counts = state.counts
        tasks = f"{counts.get('scheduled', 0)} tasks waiting, {counts.get('pending', 0)} running"
        paused = ", paused" if state.held else ""
        open_to = f", {self._supervisor.listening}" if self._supervisor.listening else ""
        return f"<{what} {self.name!r}: {ready_engines(state)} of {state.wanted} engines, {tasks}{paused}{open_to}>"

    def _repr_html_(self) -> str:
        from ipytaskfarm.client.display import html_table

        state = self.state
        head = f"<div>{html.escape(repr(self)[1:-1])}</div>"
        if state is None:
            return head
        rows = [(e.id, e.node, e.pid, e.state, "" if e.task is None else e.task, e.note) for e in state.engines]
        return head + html_table(("engine", "node", "pid", "state", "task", "note"), rows)


def _refuse_in_bootstrap() -> None:
    """RuntimeError: this is a child of multiprocessing that imports the main module, and would begin a farm of its own
    for that."""
    module = sys.modules.get("multiprocessing.process")
    if module is not None and getattr(module.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a process of multiprocessing imports the main module, which makes a Farm there:"
            ' put that below `if __name__ == "__main__":`'
        )


class _Listener:
    """The supervisor's audience of a `Farm`: it wants to know when, and nothing else."""

    def __init__(self, is_ready: threading.Event) -> None:
        self._is_ready = is_ready

    def progress(self, text: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def ready(self, state: FarmState) -> None:
        self._is_ready.set()


def _stop_all() -> None:
    """At the interpreter's end: farms that nobody stopped."""
    living = [farm for farm in _living if not farm._ended.is_set()]
    for farm in living:
        farm._end_session()
    sessions = sys.modules.get("ipytaskfarm.client.sessions")
    if living and sessions is not None:
        # What was handed in to a named farm is to be accepted before the farm ends; whether the client's own turn at
        # exit comes before or after ours depends on which was imported first.
        sessions._at_exit()
    for farm in living:
        farm._supervisor.request_stop(0.0, default=False)
    for farm in living:
        farm._ended.wait(AT_EXIT_S)


def _in_child_process() -> None:
    # A forked child has no supervising thread and must neither stop the parent's farms nor keep them alive.
    for farm in list(_living):
        farm._supervisor.in_child_process()
        farm._ended.set()
    _living.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_in_child_process)
