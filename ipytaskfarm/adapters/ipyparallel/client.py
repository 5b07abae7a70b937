"""`Client`: the connection of a program to a farm, with ipyparallel's interface."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from ipytaskfarm.adapters.ipyparallel.async_results import AsyncHubResult, AsyncResult, as_seconds, error_if_lost
from ipytaskfarm.adapters.ipyparallel.background_calls import in_thread, now_or_later
from ipytaskfarm.adapters.ipyparallel.balanced_view import LoadBalancedView
from ipytaskfarm.adapters.ipyparallel.errors import in_ipyparallels_words
from ipytaskfarm.adapters.ipyparallel.interfaces import Later
from ipytaskfarm.adapters.ipyparallel.messages import (
    CommandMessage,
    MessageFuture,
    Messages,
    Metadata,
    TaskMessage,
    engine_names,
    matching,
    records_of,
    status_of_engines,
)
from ipytaskfarm.adapters.ipyparallel.views import BroadcastView, DirectView
from ipytaskfarm.client import MultiEngineClient, TaskClient
from ipytaskfarm.client.commands import cancel_together
from ipytaskfarm.client.futures import Settler
from ipytaskfarm.client.old_names import OldNames
from ipytaskfarm.client.session import Session
from ipytaskfarm.core import errors
from ipytaskfarm.engine import is_engine

DEFAULT_TIMEOUT_S = 10.0
NAMES_STAY_S = 2.0
"""Seconds for which the names of the engines are not asked for again."""
LOOK_EVERY_S = 0.05
_BY_KEY = "; instead: `ipytaskfarm keys add --client --output FILE` on the farm's machine makes a connection file"
INSTEAD = {
    **dict.fromkeys(("sshserver", "sshkey", "password", "paramiko"), _BY_KEY),
    **dict.fromkeys(("profile_dir", "ipython_dir"), "; instead: profile= or cluster_id= names the farm"),
}
"""Argument of ipyparallel's clients -> what to do instead, as the end of a sentence."""


class Client(OldNames):
    """A connection to a farm's engines: ``rc = Client()``; views are ``rc[:]``, ``rc[0]``, ``rc.load_balanced_view()``.

    Attributes: `block` (the default of new views), `history` (message ids), `results` and `metadata` (of what
    ``get_result(owner=False)`` fetched), `tasks` and `multiengine` (the farm's own clients, which know more).
    """

    def __init__(
        self,
        connection_info: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *,
        url_file: str | os.PathLike[str] | None = None,
        profile: str | None = None,
        cluster_id: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        cluster: Any = None,
        url_or_file: str | os.PathLike[str] | None = None,
        **gone: Any,
    ) -> None:
        """Connect.

        Args:
            connection_info: the path of a farm's connection file, a farm's name, or a `Farm`.
            url_file, url_or_file: the same.
            profile, cluster_id: the farm's name; the cluster id counts first.  Without any name: the farm "default".
            timeout: seconds to wait for the farm.
            cluster: the cluster that made this client.

        Raises FarmNotRunning, an OSError, if no farm of that name runs; TypeError for other arguments.
        """
        for name in gone:
            raise TypeError(f"a Client has no argument {name!r}{INSTEAD.get(name, '')}")
        where = connection_info or url_file or url_or_file or cluster_id or profile
        if isinstance(where, Mapping):
            raise TypeError("connection_info: give the path of the farm's connection file, or the farm's name")
        found = os.fspath(where) if where is not None else None
        self.tasks = TaskClient(found, timeout=timeout)
        self.multiengine = MultiEngineClient(found)
        self.session: Session = self.tasks.session
        self.profile = profile
        self.cluster = cluster
        self.block = False
        self.history: list[str] = []
        self.results: dict[str, Any] = {}
        self.metadata: defaultdict[str, Metadata] = defaultdict(Metadata)
        self._known: set[str] = set()
        """Message ids of other clients that this one has looked for."""
        self._names: dict[int, str] = {}
        self._names_until_s = 0.0
        self._activate_in_shell()

    def __repr__(self) -> str:
        return f"<Client of farm {self.tasks.farm!r}>"

    def _activate_in_shell(self) -> None:
        ipython: Any = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython is not None and not is_engine() else None
        if shell is not None and "px" not in shell.magics_manager.magics["line"]:
            self.activate()

    # -- engines

    @property
    def _engines(self) -> dict[int, str]:
        """Return the name of each engine's incarnation by the engine's id, at most some seconds old."""
        if time.monotonic() > self._names_until_s:
            self._look()
        return self._names

    def _look(self) -> None:
        self._names = engine_names(self.multiengine)
        self._names_until_s = time.monotonic() + NAMES_STAY_S

    def uuid_of(self, engine: int) -> str:
        """Return the name of an engine's incarnation; "": unknown."""
        return self._names.get(engine, "")

    @property
    def ids(self) -> list[int]:
        """Return the ids of the engines, sorted."""
        self._look()
        return sorted(self._names)

    def __len__(self) -> int:
        return len(self.ids)

    def __bool__(self) -> bool:
        return True  # without engines `__len__` would make the client false

    def _build_targets(self, targets: Any) -> tuple[list[str], list[int]]:
        """Return the incarnations and the ids of engines.

        Raises NoEnginesRegistered if there are none, IndexError for an unknown id, TypeError for other targets.
        """
        if isinstance(targets, str) and targets.lower() != "all":
            raise TypeError(f"{targets!r} not valid str target, must be 'all'")
        if targets is None or isinstance(targets, str | slice):
            ids = self.ids
            if not ids:
                raise errors.NoEnginesRegistered("Can't build targets without any engines")
            chosen = ids[targets] if isinstance(targets, slice) else ids
        elif isinstance(targets, int):
            ids = self.ids if targets < 0 else []
            chosen = [ids[targets] if targets < 0 else targets]
        elif isinstance(targets, tuple | list | range):
            chosen = list(targets)
        else:
            raise TypeError(f"targets by int/slice/collection of ints only, not {type(targets)}")
        if any(each not in self._engines for each in chosen):
            self._look()
        unknown = [each for each in chosen if each not in self._names]
        # Calls to an engine that is being replaced wait for it; it is not in `ids`, as a dead one in ipyparallel.
        replaced = self.multiengine.get_ids() if unknown else ()
        for each in unknown:
            if each not in replaced:
                raise IndexError(f"No such engine: {each}")
        return [self.uuid_of(each) for each in chosen], chosen

    def wait_for_engines(
        self,
        n: int | None = None,
        *,
        timeout: float = -1,
        block: bool = True,
        interactive: bool | None = None,
    ) -> concurrent.futures.Future[None] | None:
        """Wait until there are at least `n` engines.

        Args:
            n: the number; None: that of the cluster, or 1.
            timeout: seconds, then TimeoutError; -1: no limit.
            block: False: return a future at once.
            interactive: print how many engines are ready whenever that changes.
        """
        wanted = n if n is not None else (self.cluster.n if self.cluster is not None and self.cluster.n else 1)
        wait = partial(self._await_engines, wanted, timeout, bool(interactive))
        if not block and len(self) < wanted:
            return in_thread(wait)
        wait()
        if block:
            return None
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        future.set_result(None)
        return future

    def _await_engines(self, count: int, timeout: float, tells: bool) -> None:
        limit_s = as_seconds(timeout)
        end_s = None if limit_s is None else time.monotonic() + limit_s
        told = -1
        while (there := len(self)) < count:
            if tells and there != told:
                print(f"{there} of {count} engines are ready", file=sys.stderr)
                told = there
            if end_s is not None and time.monotonic() > end_s:
                raise TimeoutError(f"{there} of {count} engines were ready after {timeout:g} s")
            time.sleep(LOOK_EVERY_S)
        if tells:
            print(f"{there} engines are ready", file=sys.stderr)

    # -- views

    def direct_view(self, targets: Any = "all", **flags: Any) -> DirectView:
        """Return a view of engines: an id, a slice, a list of ids, or "all", also those that come later."""
        return DirectView(self, self._for_view(targets), **flags)

    def broadcast_view(self, targets: Any = "all", is_coalescing: bool = False, **flags: Any) -> BroadcastView:
        """Return a view of several engines."""
        chosen = self._build_targets(targets)[1]
        return BroadcastView(self, chosen, is_coalescing, **flags)

    def load_balanced_view(self, targets: Any = None, **flags: Any) -> LoadBalancedView:
        """Return a view that balances calls over engines (None: all)."""
        chosen = None if targets in (None, "all") else self._build_targets(targets)[1]
        return LoadBalancedView(self, chosen, **flags)

    def executor(self, targets: Any = None) -> Any:
        """Return a ``concurrent.futures.Executor`` that submits with a load-balanced view."""
        return self.load_balanced_view(targets).executor

    def _for_view(self, targets: Any) -> Any:
        if isinstance(targets, str) and targets == "all":
            return targets
        chosen = self._build_targets(targets)[1]
        return chosen[0] if isinstance(targets, int) else chosen

    def __getitem__(self, key: Any) -> DirectView:
        if not isinstance(key, int | slice | tuple | list | range):
            raise TypeError(f"key by int/slice/iterable of ints only, not {type(key)}")
        return self.direct_view(key)

    def __iter__(self) -> Iterator[DirectView]:
        for engine in self.ids:
            yield self.direct_view(engine)

    def activate(self, targets: Any = "all", suffix: str = "") -> DirectView:
        """Register the ``%px`` magics for a view of these engines in IPython; return the view, which waits."""
        view = self.direct_view(targets, block=True)
        view.activate(suffix)
        return view

    # -- results

    @property
    def outstanding(self) -> set[str]:
        """Return the message ids of this client's calls that have not ended."""
        return Messages.of(self.session).outstanding.keys() & {*self.history, *self._known}

    @property
    def _outstanding_dict(self) -> dict[str, set[str]]:
        """Return the message ids of the calls that have not ended, by the incarnations of their engines."""
        found: dict[str, set[str]] = {name: set() for name in self._engines.values()}
        for msg_id, message in list(Messages.of(self.session).outstanding.items()):
            found.setdefault(message.metadata["engine_uuid"], set()).add(msg_id)
        return found

    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool:
        """Wait for calls; return whether all have ended.

        Args:
            jobs: results, message ids, places in `history`, other futures, or several of them; None: all calls of this
                client.
            timeout: seconds; -1: no limit.
        """
        calls = Messages.of(self.session)
        wanted: set[concurrent.futures.Future[Any]] = set()
        for job in list(self.outstanding) if jobs is None else _several(jobs):
            if isinstance(job, concurrent.futures.Future):
                wanted.add(job)
                continue
            message = calls.outstanding.get(self.history[job] if isinstance(job, int) else job)
            if message is not None:
                wanted.add(message)
        return not concurrent.futures.wait(wanted, as_seconds(timeout)).not_done

    def wait_interactive(self, jobs: Any = None, interval: float = 1.0, timeout: float = -1.0) -> None:
        """Wait for calls (None: all), and show the progress."""
        if jobs is None and not self.outstanding:
            return
        self.get_result(list(self.outstanding) if jobs is None else jobs).wait_interactive(interval, timeout)

    def _ids_of(self, jobs: Any) -> list[str]:
        """Return message ids, from results, message ids and places in `history`."""
        found: list[str] = []
        for job in _several(jobs):
            if isinstance(job, int):
                found.append(self.history[job])
            elif isinstance(job, str):
                found.append(job)
            elif isinstance(job, AsyncResult):
                found += job.msg_ids
            else:
                raise TypeError(f"Expected msg_id, int, or AsyncResult, got {job!r}")
        return found

    def get_result(self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = True) -> AsyncResult:
        """Return the result of earlier calls, also of other clients.

        Args:
            indices_or_msg_ids: message ids, places in `history`, results, or a list of them; None: the last call.
            block: whether to wait.
            owner: False: the result is kept in `results` and its metadata in `metadata` too.

        Tasks are found in any process; calls of direct views in the process that made them, while their results are in
        use.  Raises KeyError for an unknown call.
        """
        wanted = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        ids = self._ids_of(wanted)
        children = [self._message(msg_id) for msg_id in ids]
        single = not isinstance(wanted, list | tuple | set | AsyncResult) or (
            isinstance(wanted, AsyncResult) and wanted._single_result
        )
        is_others = any(each not in self._known for each in set(ids).difference(self.history))
        self._known.update(set(ids).difference(self.history))
        kind = AsyncHubResult if is_others else AsyncResult
        result = kind(self, children[0] if single else children)
        if not owner:
            for child in children:
                child.add_done_callback(self._keep)
        if self.block if block is None else block:
            result.wait()
        return result

    def _keep(self, message: concurrent.futures.Future[Any]) -> None:
        assert isinstance(message, MessageFuture)
        self.results[message.msg_id] = message.outcome()
        self.metadata[message.msg_id] = message.metadata

    def _message(self, msg_id: str) -> MessageFuture:
        calls = Messages.of(self.session)
        found = calls.find(msg_id)
        if found is not None:
            return found
        if not msg_id.isdigit():
            raise error_if_lost(msg_id)
        if not self.tasks.tasks(ids=[int(msg_id)]).rows:
            raise KeyError(msg_id)
        return self._watch(int(msg_id))

    def _watch(self, task_id: int) -> MessageFuture:
        self.session.watch([task_id])
        message = TaskMessage(self.tasks, task_id, self.uuid_of)
        Messages.of(self.session).add(message)
        Settler.of(self.session).add(message)
        return message

    def result_status(self, msg_ids: Any, status_only: bool = True) -> dict[str, Any]:
        """Return a dict of the ids in ``pending`` and ``completed``; status_only=False: the results by id too."""
        children = [self._message(msg_id) for msg_id in self._ids_of(msg_ids)]
        found: dict[str, Any] = {
            "pending": [child.msg_id for child in children if not child.done()],
            "completed": [child.msg_id for child in children if child.done()],
        }
        if not status_only:
            found |= {child.msg_id: child.outcome() for child in children if child.done()}
        return found

    def resubmit(
        self, indices_or_msg_ids: Any = None, metadata: Any = None, block: bool | None = None
    ) -> AsyncHubResult:
        """Submit ended tasks again, as new tasks.  Raises RemoteError (of KeyError) for unknown ones, ValueError for
        tasks that have not ended.
        """
        ids = self._ids_of(-1 if indices_or_msg_ids is None else indices_or_msg_ids)
        try:
            again = self.tasks.restart([_task_id(msg_id) for msg_id in ids])
        except (KeyError, IndexError) as error:
            raise in_ipyparallels_words(KeyError(f"Unrecognized msg_ids: {ids}"), {}) from error
        messages = [self._watch(task_id) for task_id in again]
        self._known.update(message.msg_id for message in messages)
        result = AsyncHubResult(self, messages)
        if self.block if block is None else block:
            result.wait()
        return result

    def abort(self, jobs: Any = None, targets: Any = None, block: bool | None = None) -> Later:
        """Abort calls; reading them raises TaskAborted.

        Args:
            jobs: message ids and results; None: all calls of this client.
            targets: abort only calls of direct views on these engines; they are dropped on their other engines too.
            block: False: return a future at once, which ends when the calls are aborted.

        Tasks are aborted also while they run.  The call of a direct view that an engine runs goes on.
        """
        wanted = list(self.outstanding) if jobs is None else _several(jobs)
        for job in wanted:
            if not isinstance(job, str | AsyncResult):
                raise TypeError(f"Invalid msg_id type {job!r}, expected str or AsyncResult")
        ids = self._ids_of(wanted)
        calls = Messages.of(self.session).outstanding
        commands = [found for each in ids if isinstance(found := calls.get(each), CommandMessage)]
        tasks = [int(msg_id) for msg_id in ids if msg_id.isdigit()]
        if targets is not None:
            chosen = self._build_targets(targets)[1]
            tasks, commands = [], [each for each in commands if each.metadata["engine_id"] in chosen]
        return now_or_later(partial(self._abort, tasks, commands), block)

    def _abort(self, tasks: list[int], commands: list[CommandMessage]) -> None:
        self.tasks.abort(tasks)
        cancel_together(list({id(found): found for each in commands if (found := each.pending) is not None}.values()))

    # -- engines and their names

    def clear(self, targets: Any = None, block: bool | None = None) -> AsyncResult | None:
        """Empty the namespaces of engines (None: all)."""
        view = self.direct_view("all" if targets is None else targets)
        ids = self._build_targets(targets)[1]
        pending = self.multiengine.reset(targets=ids, block=False)
        result = AsyncResult(self, view._send("clear", ids, pending), "clear", ids)
        if not (self.block if block is None else block):
            return result
        result.get()
        return None

    def send_signal(self, sig: int | str, targets: Any = None, block: bool | None = None) -> Later:
        """Send a signal to engines (None: all).

        Args:
            sig: a number, or a name.  "SIGINT" interrupts what the engines run; tasks are aborted.  Other signals reach
                engines on this machine alone.
            targets: the engines.
            block: False: return a future at once, which ends when the signal is sent.

        Raises NotImplementedError for another signal to engines of other machines.
        """
        number = int(sig) if isinstance(sig, int) or sig.isdigit() else int(getattr(signal, sig))
        return now_or_later(partial(self._send_signal, number, self._build_targets(targets)[1]), block)

    def _send_signal(self, number: int, chosen: list[int]) -> None:
        rows = [row for row in self.multiengine.engines() if row.id in chosen]
        if number == signal.SIGINT:
            self.multiengine.interrupt(chosen)
            self.tasks.abort([row.task for row in rows if row.task is not None], reason="SIGINT")
            return
        away = [row.id for row in rows if row.facts.get("hostname") not in (None, socket.gethostname())]
        if away:
            raise NotImplementedError(f"engines {away} are on other machines, where only SIGINT can be sent")
        for row in rows:
            os.kill(row.pid, number)

    def shutdown(
        self, targets: Any = "all", restart: bool = False, hub: bool = False, block: bool | None = None
    ) -> Later:
        """End engines at once; the farm keeps fewer from now on.

        Args:
            targets: the engines.
            restart: not possible here; engines that die are replaced anyway.
            hub: end the whole farm.
            block: False: return a future at once, which ends when they are told.
        """
        if restart:
            raise NotImplementedError("Engine restart is not yet implemented")
        return now_or_later(partial(self._shutdown, targets, hub), block)

    def _shutdown(self, targets: Any, hub: bool) -> None:
        if hub:
            self.multiengine.kill(controller=True)
            return
        try:
            chosen = self._build_targets(targets)[1]
        except errors.NoEnginesRegistered:
            return
        self.multiengine.kill(targets=chosen)
        self._names_until_s = 0.0

    def queue_status(self, targets: Any = "all", verbose: bool = False) -> dict[Any, Any]:
        """Return for each engine its commands in ``queue``, its ``tasks`` and what it has ``completed``, and the tasks
        ``unassigned``: numbers, or with verbose lists of texts and of message ids.

        Counted as completed is what `hub_history` has: ended tasks that were not cleared, and this process's commands.
        """
        ids = self._build_targets(targets)[1]
        status = status_of_engines(self.multiengine.queue_status(targets=ids, block=True), self._records(), verbose)
        if isinstance(targets, int):
            status_of_one: dict[Any, Any] = status[ids[0]]
            return status_of_one
        waiting = self.tasks.queue_status(verbose)["scheduled"]
        return {"unassigned": list(map(str, waiting)) if verbose else waiting, **status}

    # -- records

    def hub_history(self) -> list[str]:
        """Return the message ids of the farm's tasks, and of this process's last commands, in order of submission."""
        return [record["msg_id"] for record in self._records()]

    def db_query(self, query: dict[str, Any], keys: str | Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Return the records that match a query: ``{"label": "a", "submitted": {"$gte": time}}``.

        Args:
            query: names of a record's entries, each with a value or with conditions ($eq, $ne, $lt, $lte, $gt, $gte,
                $in, $nin, $all, $mod, $exists, $glob).
            keys: the entries to return; None: all.  ``msg_id`` is always there.

        What a call has printed, displayed and raised (``stdout``, ``error`` …) is there as long as its result is in use
        in this process.
        """
        wanted = None if keys is None else {"msg_id", *([keys] if isinstance(keys, str) else keys)}
        found = matching(self._records(), query)
        if wanted is None:
            return found
        return [{name: value for name, value in record.items() if name in wanted} for record in found]

    def _records(self) -> list[dict[str, Any]]:
        return records_of(self.tasks.tasks().rows, Messages.of(self.session), self.uuid_of)

    def purge_local_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """Forget results in this process.  Raises RuntimeError for calls that have not ended."""
        ids = self._to_purge(jobs, targets, {name: str(data["engine_uuid"]) for name, data in self.metadata.items()})
        pending = self.outstanding if ids is None else self.outstanding.intersection(ids)
        if pending:
            raise RuntimeError(f"Can't purge outstanding tasks: {pending}")
        for msg_id in list(self.results) if ids is None else ids:
            self.results.pop(msg_id, None)
            self.metadata.pop(msg_id, None)

    def purge_hub_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """Delete the results of tasks on the farm, and the records of commands."""
        ids = self._to_purge(jobs, targets, {each["msg_id"]: str(each["engine_uuid"]) for each in self._records()})
        Messages.of(self.session).forget(ids)
        tasks = None if ids is None else [int(msg_id) for msg_id in ids if msg_id.isdigit()]
        if tasks is None or tasks:
            self.tasks.clear(tasks)

    def purge_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """Forget results here and on the farm; jobs="all": all of them."""
        self.purge_local_results(jobs, targets)
        self.purge_hub_results(jobs, targets)

    def purge_everything(self) -> None:
        """Forget all results, and the history."""
        self.purge_results("all")
        self.history = []

    def _to_purge(self, jobs: Any, targets: Any, engines: Mapping[str, str]) -> list[str] | None:
        """Return the message ids of jobs, and those of engines; None: all."""
        if not jobs and not targets:
            raise ValueError("Must specify at least one of `targets` and `jobs`")
        if isinstance(jobs, str) and jobs == "all":
            return None
        names = set(self._build_targets(targets)[0]) if targets else set()
        return [*self._ids_of(jobs or []), *(msg_id for msg_id, name in engines.items() if name in names)]

    # -- life

    def spin(self) -> None:
        """Do nothing: results arrive by themselves."""

    def close(self) -> None:
        """End the connection, when all that was submitted is accepted; tasks and engines go on."""
        self.tasks.close()
        self.multiengine.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _several(jobs: Any) -> list[Any]:
    if isinstance(jobs, str | int) or not isinstance(jobs, Iterable) or isinstance(jobs, AsyncResult):
        return [jobs]
    return list(jobs)


def _task_id(msg_id: str) -> int:
    if not msg_id.isdigit():
        raise KeyError(msg_id)
    return int(msg_id)
