"""Run a failed task in this process with the inputs that it had, and open the debugger where it fails."""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import importlib
import inspect
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from ..core import errors
from ..core.text import shown, text_of
from ..environment import TaskEnvironment
from ..serialization.exceptions import known_sources
from ..serialization.pack import traceback_of
from .results import TaskResult
from .tasks import CallTask, StringTask, Task

_PACKAGE = str(Path(__file__).parents[1])


def run_and_debug(task: Task, name: str) -> None:
    """Run a task here; open the debugger if it fails, and print its value if it does not.

    task: with values in place of references. name: the task's name in messages, such as "task 73".

    Raises EnvironmentSetupError if its environment cannot be set up in this process, and the task's own error if there
    is no terminal for a debugger.
    """
    names = _names_of_session()
    with _environment(task.environment, names, name):
        try:
            value = _run(task, names, name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            open_debugger(error, users_part(error.__traceback__))
            return
    print(f"{name} succeeded here: {shown(value, 200)}")


def open_frames(result: TaskResult | None, name: str) -> None:
    """Open the debugger in the frames that came with a failure; their variables are texts.

    Raises:
        ValueError: the task has not failed, or no frames came with its failure.
    """
    failure = None if result is None else result.failure
    if failure is None:
        raise ValueError(f"{name} has not failed")
    tb = failure.value.__traceback__ or traceback_of(failure.value)
    if tb is None:
        raise ValueError(f"no frames of your code came with the failure of {name}; explain tells more of it")
    open_debugger(failure.value, tb)


def open_debugger(error: BaseException, tb: types.TracebackType | None) -> None:
    """Open the debugger at the end of a traceback: IPython's, or in plain Python pdb.

    Raises `error` if no user can type here: there is no terminal, or the notebook is run by a program.
    """
    with known_sources([tb]):
        if not can_ask():
            _raised[:] = [error]
            raise error.with_traceback(tb)
        shell = _shell()
        if shell is None:
            traceback.print_exception(type(error), error, tb)
            importlib.import_module("pdb").post_mortem(tb)  # it costs 3 ms of each client's start
            return
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, tb
        shell.showtraceback((type(error), error, tb))
        shell.InteractiveTB.debugger(force=True)


_raised: list[BaseException] = []
"""The last error that `open_debugger` raised."""


def raised_by_task(error: BaseException) -> bool:
    """Return whether an error of `TaskClient.debug` is that of the task, and not one of the call."""
    return any(error is each for each in _raised)


def users_part(tb: types.TracebackType | None) -> types.TracebackType | None:
    """Return a traceback from the first frame of the user's code on."""
    found = tb
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        found = found.tb_next
    return found or tb


def _shell() -> Any:
    """Return the IPython shell of this process; None in plain Python."""
    find = getattr(builtins, "get_ipython", None)
    return find() if find is not None else None


def can_ask() -> bool:
    """Return whether a user can answer a prompt: at a terminal, or in a notebook that no program runs."""
    shell = _shell()
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:
        return bool(getattr(kernel, "_allow_stdin", True))
    return sys.stdin is not None and sys.stdin.isatty()


# --------------------------------------------------------------------------------------------------
# Running


def _names_of_session() -> dict[str, Any]:
    """Return the namespace of the user's session."""
    shell = _shell()
    names: dict[str, Any] = shell.user_ns if shell is not None else sys.modules["__main__"].__dict__
    return names


@contextlib.contextmanager
def _environment(environment: TaskEnvironment | None, names: dict[str, Any], name: str) -> Iterator[None]:
    """Set up an environment in this process for the duration of the block, as an engine does."""
    if environment is None:
        yield
        return
    folder, before = os.getcwd(), names.get("env", environment)
    try:
        try:
            if environment.cwd is not None:
                os.chdir(environment.cwd)
            for module in environment.preload:
                importlib.import_module(module)
            environment.setup()
        except Exception as error:
            what = f"the environment {type(environment).__name__} of {name} cannot be set up in this process"
            frames = "tc.debug(id, run=False) opens the frames that came with the failure"
            raise errors.EnvironmentSetupError(f"{what}: {type(error).__name__}: {text_of(error)}; {frames}") from error
        names["env"] = environment
        yield
    finally:
        os.chdir(folder)
        names["env"] = before
        if before is environment:
            del names["env"]
        with contextlib.suppress(Exception):
            environment.teardown()


def _run(task: Task, names: dict[str, Any], name: str) -> Any:
    if isinstance(task, CallTask):
        return _awaited(task.function(*(task.args or ()), **(task.kwargs or {})))
    assert isinstance(task, StringTask), f"a {type(task).__name__} runs no code"
    return _run_code(task, names, name)


def _run_code(task: StringTask, session: dict[str, Any], name: str) -> dict[str, Any]:
    """Run code in a namespace of its own, which has what the task pushes and what else of the session it uses."""
    shell = _shell()
    source = task.expression if shell is None else shell.transform_cell(task.expression)
    filename = f"<{name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    try:
        code = compile(source, filename, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        if shell is None:
            error.add_note(f"if {name} uses IPython's syntax (%magics, !commands), debug it in IPython")
        raise
    names = {"__name__": "__main__", "__builtins__": builtins, **(task.push or {})}
    names.update({each: session[each] for each in _names_in(code) if each in session and each not in names})
    _awaited(eval(code, names))
    pulled = [task.pull] if isinstance(task.pull, str) else list(task.pull or ())
    missing = [each for each in pulled if each not in names]
    if missing:
        raise NameError(f"name {missing[0]!r} is not defined")
    return {each: names[each] for each in pulled}


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names_in(inner)


def _awaited(value: Any) -> Any:
    """Return the result of a coroutine, which runs in a loop of its own; any other value as it is."""
    if not inspect.iscoroutine(value):
        return value
    ended: list[Any] = []
    thread = threading.Thread(target=_run_loop, args=(value, ended.append), name="debugged task")
    thread.start()
    thread.join()
    (outcome,) = ended
    if isinstance(outcome, _Raised):
        raise outcome.error
    return outcome


class _Raised:
    """The error of a coroutine."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _run_loop(coroutine: Coroutine[Any, Any, Any], end: Callable[[Any], None]) -> None:
    try:
        end(asyncio.run(coroutine))
    except BaseException as error:
        end(_Raised(error))
