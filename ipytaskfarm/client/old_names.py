"""Names and keywords of IPython 0.10, STK, core4, bndl and Dask that are not names here: what to write in their place.

An AttributeError alone says that a program is at an end.  These sentences say how it goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from ..core.text import did_you_mean
from ..system.user_code import tell_user

F = TypeVar("F", bound=Callable[..., Any])
_PACKAGE = __name__.partition(".")[0]

_SERIALIZED = "push and pull pickle every value that can be pickled"
_TASKS_HERE = "tasks are the TaskClient's: tc = client.TaskClient()"
_ENGINES_HERE = "engines are the MultiEngineClient's: mec = client.MultiEngineClient()"
_FRAME = (
    "sort_values", "head", "tail", "groupby", "query", "loc", "iloc", "columns", "describe", "plot", "shape", "to_csv",
)  # fmt: skip
_WAITS = "get_result() waits, returns the value and raises the error"

GONE: dict[str, dict[str, str]] = {
    "TaskClient": {
        "connect": "TaskClient(…) has connected already",
        "disconnect": "close()", "dispose": "close()",
        "targets": "Task(…, targets=[0])",
        "retries": "Task(…, retries=2), mapper(retries=2)", "depend": "Task(…, depend=f)",
        "smultiengine": _ENGINES_HERE,
        **dict.fromkeys(
            ("execute", "push", "pull", "get_ids", "get_result", "activate", "kill", "reset",
             "keys", "set_properties", "get_properties", "push_function", "zip_pull", "clear_queue"), _ENGINES_HERE),
        "scatter": f"{_ENGINES_HERE}; a value for many tasks is broadcast(value)",
        "gather": f"{_ENGINES_HERE}; the values of futures are [future.result() for future in futures]",
        "get": "get_task_result(id, block=True)", "upload_file": "nothing: modules of your project are sent by value",
        "compute": "submit(f, x), or for dask's collections dask.config.set(scheduler=tc.dask_get)",
        "dashboard_link": "view(), or the command ipytaskfarm web", "shutdown": "farm.stop(), or ipytaskfarm stop",
        "starmap": "map(f, *zip(*pairs)): each sequence has one argument of all calls",
        "stop": "farm.stop(), or ipytaskfarm stop", "apply": "submit(f, x).result()", "apply_async": "submit(f, x)",
        "apply_sync": "submit(f, x).result()", "map_sync": "map(f, xs)", "map_async": "map(f, xs, block=False)",
        "results": "job.results(), or [tc.get_task_result(id, block=True) for id in ids]",
        "retry_failed": "job.retry_failed(), or tc.retry(tc.tasks(state='failed'))",
        "output": "get_task_result(id).stdout", "stdout": "get_task_result(id).stdout",
        "log": "get_task_result(id).stdout, or the command ipytaskfarm logs --task",
        "engines": f"{_ENGINES_HERE}; mec.engines()",
        "getTaskResult": "get_task_result(id)", "getTask": "get_task_result(id)", "queueStatus": "queue_status()",
        "await_workers": "await_engines(count, connect_timeout=5, stable_timeout=60)",
        "workers": "await_engines() returns the ids of engines, snapshot() all of them",
        "worker_count": "len(MultiEngineClient())", "submit_job": "create_job(), then job.submit()",
        "wait_until_done": "barrier(ids), job.wait()", "cancel": "abort(ids)", "cancel_job": "abort(ids)",
        "cancel_task": "abort(id)", "get_coordinator_snapshot": "snapshot()",
        "is_connected": "status(id), or any other call", "get_server_maximum_host_count": "len(MultiEngineClient())",
        "remove": "clear(ids)", "delete": "clear(ids)", "wait_for_workers": "await_engines(n)",
        "who_has": "tasks() and tasks(ids=[…])", "has_what": "tasks()", "ncores": "snapshot()",
        "nthreads": "snapshot()", "scheduler_info": "snapshot(), or the command ipytaskfarm status",
        "get_versions": "the command ipytaskfarm doctor", "run_on_scheduler": "submit(f, x)",
        "persist": "submit(f, x): the farm keeps results",
        "enqueue": "run(task)", "launch": "run(task); in a task current_task().submit(f, …)",
    },
    "MultiEngineClient": {
        "push_serialized": _SERIALIZED, "pull_serialized": _SERIALIZED,
        "get_pending_deferred": "get_result() of the PendingResult", "clear_pending_results": "flush()",
        "clear_pending_deferreds": "flush()", "smultiengine": "the client itself", "controller": "the client itself",
        **dict.fromkeys(("run_task", "get_task_result", "abort", "spin", "clear", "submit", "queue"), _TASKS_HERE),
        "getIDs": "get_ids()", "executeAll": "execute(lines)", "pushAll": "push({'a': 1})", "pullAll": "pull('a')",
        "scatterAll": "scatter(key, seq)", "gatherAll": "gather(key)", "resetAll": "reset()", "killAll": "kill()",
        "getResult": "get_result()", "queueStatus": "queue_status()", "clearQueue": "clear_queue()",
        "mapAll": "map(f, seq)", "runAll": "run(filename)", "benchmark": "time.perf_counter() around push and execute",
        "properties": "get_properties(), set_properties({…})",
        "workers": "get_ids()", "worker_count": "len(mec)", "ids": "get_ids()",
        **dict.fromkeys(
            ("load_balanced_view", "direct_view", "broadcast_view", "apply_sync", "apply_async", "map_sync",
             "map_async"),
            f"views are those of import {_PACKAGE}.ipyparallel as ipp; rc = ipp.Client()"),
        "await_workers": "await_engines(count, connect_timeout=5, stable_timeout=60)",
    },
    "PendingResult": {
        "wait": _WAITS, "raise_exception": _WAITS, "addCallback": "add_callback(f)", "addErrback": _WAITS,
        "addBoth": "add_done_callback(f)", "client": "the MultiEngineClient that sent the command",
        "callbacks": "add_callback(f) adds one", "get": _WAITS, "ready": "done()",
    },
    "Failure": {
        "getTracebackObject": "tb", "parents": "type.__mro__", "stack": "frames", "count": "nothing: there is one",
        "throwExceptionIntoGenerator": "raiseException()",
    },
    "CompositeError": {
        "_get_engine_str": "elist has (engine id, verb, exception)",
        "_get_traceback": "print_tracebacks(i), or remote_traceback of the exception",
    },
    "Task": {
        "taskid": "run returns the id", "run": "tc.run(task)", "submit": "tc.submit(task)", "options": "attributes",
        "start": "started_at of its TaskResult", "duration": "duration of its TaskResult",
        "check_depend": "tc.explain(id)", "execute": "tc.run(task)",
        "started": "tc.status(id)", "done": "tc.status(id)", "failed": "tc.status(id)",
        "exception": "tc.get_task_result(id).failure", "mark_done": "tc.mark_done(id, result)",
        "mark_failed": "tc.mark_failed(id, reason)", "dependents": "job.tasks", "dependencies": "after",
    },
    "Job": {
        "name": "create_job(name)", "description": "create_job(name): a name may be any text",
        "desc": "create_job(name): a name may be any text", "add_tasks": "add_task(task) for each", "cancel": "abort()",
        "execute": "submit(), then results()", "status": "tc.tasks(ids=job.ids), print(job)",
        "job_status": "tc.tasks(ids=job.ids), print(job)", "add_task_completed_listener": "on_task_done(f)",
        "tasks_completed": "on_task_done(f)", "task_completed": "on_task_done(f)",
        "on_task_completed": "on_task_done(f)",
        "job_completed": "wait()", "task_preconditions": "requires={'memory': '>= 4 GiB'}",
        "preconditions": "requires={'memory': '>= 4 GiB'}", "agent_selection_preference": "placement='random'",
        "maximum_task_failures": "abort_on_failure=True, or retries", "task_environment_setup": "environment",
        **dict.fromkeys(("result", "get", "values"), "results()"), **dict.fromkeys(("barrier", "join"), "wait()"),
        "stop": "abort()", "failures": "tc.failures(job=job)", "errors": "tc.failures(job=job)",
        **dict.fromkeys(("state", "done", "ready", "ended"), "counts(), wait(timeout=0), print(job)"),
        "stdout": "results().stdout of a map, or tc.get_task_result(id).stdout", "restart": "retry(failed=False)",
    },
    "JobLine": dict.fromkeys(
        ("results", "wait", "abort", "pause", "resume", "retry", "retry_failed", "ids", "counts", "progress", "view",
         "as_completed", "set_priority"), "tc.job(line), which is the job"),
    "TaskStatus": dict.fromkeys(
        ("result", "stdout", "stderr", "failure", "traceback"), "attributes of tc.get_task_result(row)"),
    "FailureGroup": {"retry": "tc.retry(group.ids)", "tasks": "ids", "count": "len(group)", "text": "message"},
    "TaskFuture": {
        **dict.fromkeys(("get", "value", "r"), "result()"), "wait": "result(timeout), or tc.barrier(future)",
        "ready": "done()", "successful": "exception() is None", "abort": "cancel()", "key": "id",
        "status": "tc.status(future)", "state": "tc.status(future)",
        **dict.fromkeys(("stdout", "stderr", "traceback", "failure"), "attributes of tc.get_task_result(future)"),
    },
    "TaskTable": dict.fromkeys(_FRAME, "to_dataframe() makes a pandas DataFrame"),
    "Listing": dict.fromkeys(_FRAME, "to_dataframe() makes a pandas DataFrame"),
    "Client": {  # ipyparallel's
        "become_dask": "dask.config.set(scheduler=rc.tasks.dask_get), for dask's collections",
        "stop_dask": "nothing: no process of dask runs", "spin_thread": "nothing: a thread receives",
        "stop_spin_thread": "nothing: a thread receives", "create_message_futures": "rc.get_result(msg_id)",
        "send_apply_request": "rc[:].apply_async(f, x)", "send_execute_request": "rc[:].execute(code)",
        "task": "rc.tasks", "submit": "rc.executor().submit(f, x), rc.tasks.submit(f, x)",
        **dict.fromkeys(
            ("execute", "push", "pull", "scatter", "gather", "apply", "apply_sync", "apply_async", "run",
             "sync_imports", "get", "update"), "views have it: rc[:], rc[0], rc.load_balanced_view()"),
        **dict.fromkeys(("map", "map_sync", "map_async"), "views have it: rc.load_balanced_view(), rc[:]"),
    },
    "Member": {
        "result": "job.results(), tc.get_task_result(member.id).result", "task_status": "tc.status(member.id)",
        "status": "tc.status(member.id)", "standard_output": "tc.get_task_result(member.id).stdout",
        "standard_error": "tc.get_task_result(member.id).stderr",
    },
}  # fmt: skip
"""Class -> name -> what to write."""

_OF_FARM = "a setting of the farm, for all its engines: Farm({}=…)"
ARGUMENTS = {
    **{name: _OF_FARM.format(name) for name in ("memory_limit", "coroutines", "load_limit", "preload", "startup")},
    "recycle": "environment, whose recycle is RecycleSettings(after_tasks=100)",
    "after_tasks": "environment, whose recycle is RecycleSettings(after_tasks=100)",
    "attempts": "retries, which counts only the further ones: attempts=3 is retries=2", "error_time": "retry_delay",
    "wall_time": "warn_after, or time_limit, which ends the run", "desc": "name, which may be any text",
    "description": "name, which may be any text", "worker": "targets", "workers": "targets",
    "concurrency": "one task at a time per engine: start more engines", "node": "requires={'hostname': 'a'}",
    "setupNS": "push={'a': 1}", "resultNames": "pull=['a']", "clearBefore": "clear_before", "clearAfter": "clear_after",
    "recoveryTask": "recovery_task", "dependencies": "after", "preconditions": "requires={'memory': '>= 4 GiB'}",
    "memory": "resources={'memory': '2 GiB'}", "cores": "resources={'cores': 2}", "order_results": "order",
    "task_environment": "environment", "method": "Task(f, args=…)",
}  # fmt: skip
"""Keyword -> what to write."""


def remedy(kind: str, name: str) -> str:
    """Return what to write in place of a name, as the end of a sentence; "" if that is not known."""
    found = GONE.get(kind, {}).get(name)
    return f"; instead: {found}" if found else ""


def no_attribute(thing: object, kind: str, name: str) -> AttributeError:
    """Return the error for a name that a class of the client does not have."""
    known = [] if name.startswith("_") else [each for each in dir(type(thing)) if not each.startswith("_")]
    text = remedy(kind, name) or did_you_mean(name, known)
    return AttributeError(f"{type(thing).__name__!r} object has no attribute {name!r}{text}", name=name, obj=thing)


class OldNames:
    """A class whose missing names say what to write in their place."""

    _kind: ClassVar[str]
    """The class's name in `GONE`, also for classes that users derive from it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "_kind") and cls.__module__ != __name__:
            cls._kind = cls.__name__

    if not TYPE_CHECKING:  # with this method type checkers would allow any attribute

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property has raised an AttributeError, such as the task's own
                return object.__getattribute__(self, name)
            raise no_attribute(self, self._kind, name)


class ClientNames(OldNames):
    """A client: it tells of attributes that are assigned and that nothing reads.

    settable: the names that may be assigned, beside properties.
    """

    _settable: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, settable: Iterable[str] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._settable = cls._settable | frozenset(settable)
        if "__init__" in vars(cls) and settable:
            type.__setattr__(cls, "__init__", old_keywords(furl_or_file="where")(vars(cls)["__init__"]))

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and name not in self._settable:
                self._note_assignment(name)
            object.__setattr__(self, name, value)

    def _note_assignment(self, name: str) -> None:
        """Tell of an attribute that nothing reads; classes of users may have any."""
        if type(self).__module__.partition(".")[0] != _PACKAGE or hasattr(type(self), name):
            return
        text = remedy(self._kind, name) or did_you_mean(name, self._settable)
        tell_user(f"nothing reads {name!r} of a {self._kind}{text}")


def old_keywords(**names: str) -> Callable[[F], F]:
    """Return a decorator by which a function also takes arguments by their names in IPython 0.10.

    names: the old name of each argument, with the present one.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f"{function.__name__}() got {old!r} and {new!r}, which are one argument")
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(F, call)

    return decorate
