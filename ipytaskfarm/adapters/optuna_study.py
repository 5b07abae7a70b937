"""``tc.optimize``: run the trials of an optuna study on a farm, by optuna's ask-and-tell interface.

The study, its sampler and its storage stay in the client.  A trial on an engine sends the calls of its objective
(``suggest_float``, ``should_prune`` …) to the client, which answers them from the real trial.  Engines import this
module, so it imports optuna only in the client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ipytaskfarm.core import errors
from ipytaskfarm.core.arguments import check_count, check_seconds
from ipytaskfarm.engine import current_task

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient

METHODS = frozenset({"suggest_float", "suggest_int", "suggest_categorical", "report", "should_prune", "set_user_attr"})
VALUES = frozenset({"params", "distributions", "user_attrs", "datetime_start", "relative_params"})
STUDY_METHODS = frozenset({"stop", "set_user_attr"})
STUDY_VALUES = frozenset(
    {"best_params", "best_trial", "best_trials", "best_value", "direction", "directions", "study_name", "trials"}
    | {"user_attrs"}
)
RETRIES = 2
"""Number of repetitions of a trial after the loss of its engine; a repetition gets the same suggested values."""


class FarmTrial:
    """A trial on an engine, with the methods of ``optuna.Trial`` that objectives call; the client answers the calls."""

    def __init__(self, number: int) -> None:
        self.number = number
        """The trial's number in its study."""
        self._asked = 0

    @property
    def study(self) -> FarmStudy:
        """Return the study, as far as objectives use it: `stop`, ``best_value`` …"""
        return FarmStudy(self)

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return lambda *args, **kwargs: self.ask(name, args, kwargs)
        if name in VALUES:
            return self.ask(name, None, {})
        known = ", ".join(sorted(METHODS | VALUES | {"study"}))
        raise AttributeError(f"a trial on a farm has no {name!r}; it has number, {known}")

    def ask(self, name: str, args: tuple[Any, ...] | None, kwargs: dict[str, Any]) -> Any:
        """Send a question, and return its answer or raise its error."""
        task = current_task()
        self._asked += 1
        mark = (task.attempt, self._asked)
        task.send((mark, name, args, kwargs))
        while True:
            answered, value, error = task.receive().value
            # A message may be the answer to an earlier attempt of this task.
            if answered == mark:
                if error is not None:
                    raise error
                return value


class FarmStudy:
    """The study of a trial on an engine; the client answers for the real one."""

    def __init__(self, trial: FarmTrial) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        if name in STUDY_METHODS:
            return lambda *args, **kwargs: self._trial.ask(f"study.{name}", args, kwargs)
        if name in STUDY_VALUES:
            return self._trial.ask(f"study.{name}", None, {})
        known = ", ".join(sorted(STUDY_METHODS | STUDY_VALUES))
        raise AttributeError(f"the study of a trial on a farm has no {name!r}; it has {known}")


def run_objective(objective: Callable[[Any], Any], number: int) -> Any:
    """Call an objective with the trial of this number; this is the function of a trial's task."""
    return objective(FarmTrial(number))


def optimize(
    client: TaskClient,
    study: Any,
    objective: Callable[[Any], Any],
    n_trials: int | None = None,
    timeout: float | None = None,
    n_jobs: int | None = None,
    catch: type[Exception] | Iterable[type[Exception]] = (),
    callbacks: Sequence[Callable[[Any, Any], object]] | None = None,
    gc_after_trial: bool = False,
    show_progress_bar: bool = False,
    **rules: Any,
) -> None:
    """Run trials of a study on the farm, as ``study.optimize`` does locally.

    Args:
        client: the farm's client.
        study: an ``optuna.Study``.
        objective: a function of a trial that returns a number, or several.
        n_trials: the number of trials; None: until `timeout`.
        timeout: seconds after which no more trials begin.
        n_jobs: the number of trials at a time; None, or -1: one for each engine.
        catch: exceptions of the objective that fail only their trial.
        callbacks: called with the study and each trial that has ended; one may call ``study.stop()``.
        gc_after_trial: accepted as by ``study.optimize``, and of no effect: no trial runs in this process.
        show_progress_bar: show optuna's progress bar.
        rules: rules of a `Task` for each trial.

    Raises ValueError without `n_trials` and `timeout`; and the first error of a trial that is not in `catch`, or of a
    callback, after the running trials have ended. Ctrl-C aborts the running trials; they count as failed.
    """
    if n_trials is None and timeout is None:
        raise ValueError("optimize needs n_trials, or timeout: it would not end")
    from ipytaskfarm.adapters.executor_calls import check_rules

    rules = {"retries": RETRIES, "retry_on": errors.EngineLost, **rules}
    check_rules(rules)  # before a trial is asked for
    count, seconds = check_count("n_trials", n_trials, least=0), check_seconds("timeout", timeout)
    trials = _Trials(study, count, seconds, [*(callbacks or ()), *_progress_bars(show_progress_bar, count, seconds)])
    caught = (catch,) if isinstance(catch, type) else tuple(catch)
    if n_jobs is not None and n_jobs < 0:
        n_jobs = None
    workers = check_count("n_jobs", n_jobs, least=1) or max(1, client.snapshot().slots)
    run = _TrialRunner(client, trials, objective, caught, rules)
    with ThreadPoolExecutor(workers, "ipytaskfarm trials") as pool:
        futures = [pool.submit(run.go_on) for _ in range(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            trials.end()
            if not isinstance(error, Exception):  # Ctrl-C
                run.abort()
            raise
    if trials.error is not None:
        raise trials.error


def _progress_bars(is_shown: bool, count: int | None, seconds: float | None) -> Iterator[Callable[[Any, Any], object]]:
    """Yield the callback that moves optuna's progress bar, if it is shown."""
    if is_shown:
        from optuna.progress_bar import _ProgressBar

        bar = _ProgressBar(True, count, seconds)
        begin_s = time.monotonic()
        yield lambda study, _: bar.update(time.monotonic() - begin_s, study)


class _Trials:
    """The study, which one thread at a time uses, and the number of trials that have not begun."""

    def __init__(
        self,
        study: Any,
        count: int | None,
        timeout_s: float | None,
        callbacks: Sequence[Callable[[Any, Any], object]],
    ) -> None:
        self._study = study
        self._left = count
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._callbacks = callbacks
        self._lock = threading.Lock()
        self.error: BaseException | None = None
        study._stop_flag = False  # an earlier run may have been stopped

    def enter(self) -> None:
        """Let this thread call ``study.stop()``, which optuna refuses outside of its own loop."""
        self._study._thread_local.in_optimize_loop = True

    def end(self) -> None:
        """Let no more trials begin."""
        with self._lock:
            self._left = 0

    def next(self) -> Any:
        """Return a new trial; None: no more trials may begin."""
        with self._lock:
            is_late = self._end_s is not None and time.monotonic() >= self._end_s
            if self.error is not None or is_late or self._left == 0 or self._study._stop_flag:
                return None
            if self._left is not None:
                self._left -= 1
            return self._study.ask()

    def answer(self, trial: Any, name: str, args: tuple[Any, ...] | None, kwargs: dict[str, Any]) -> Any:
        """Return the trial's answer to a call of its objective."""
        with self._lock:
            found = attrgetter(name)(trial)
            return found if args is None else found(*args, **kwargs)

    def tell(self, trial: Any, value: Any, error: BaseException | None, is_caught: bool) -> None:
        """Record the end of a trial, and call the callbacks."""
        import optuna

        states = optuna.trial.TrialState
        with self._lock:
            if isinstance(error, optuna.TrialPruned):
                ended = self._study.tell(trial, state=states.PRUNED)
            elif error is not None:
                ended = self._study.tell(trial, state=states.FAIL)
                if not is_caught and self.error is None:
                    self.error = error
            else:
                ended = self._study.tell(trial, value)
            for callback in self._callbacks:
                callback(self._study, ended)


class _TrialRunner:
    """Runs trials one after the other; each thread of `optimize` calls `go_on`."""

    def __init__(
        self,
        client: TaskClient,
        trials: _Trials,
        objective: Callable[[Any], Any],
        caught: tuple[type[Exception], ...],
        rules: dict[str, Any],
    ) -> None:
        self._client = client
        self._trials = trials
        self._objective = objective
        self._caught = caught
        self._rules = rules
        self._running: set[int] = set()
        self._is_aborted = False
        self._lock = threading.Lock()

    def abort(self) -> None:
        """Abort the running trials, and those that are just being submitted."""
        with self._lock:
            self._is_aborted = True
            ids = sorted(self._running)
        self._client.abort(ids, reason="the optimization was interrupted")

    def go_on(self) -> None:
        """Run trials until no more may begin."""
        self._trials.enter()
        while (trial := self._trials.next()) is not None:
            try:
                value, error = self._run(trial), None
            except Exception as failed:
                value, error = None, failed
            self._trials.tell(trial, value, error, isinstance(error, self._caught))

    def _run(self, trial: Any) -> Any:
        """Run one trial as a task, answer its questions and print what it prints; return its value or raise."""
        from ipytaskfarm.adapters.executor_ends import write_output
        from ipytaskfarm.client import Task

        rules = {"name": f"trial {trial.number}", **self._rules}
        future = self._client.submit(Task(run_objective, args=(self._objective, trial.number), **rules))
        with self._lock:
            self._running.add(future.id)
            is_late = self._is_aborted
        if is_late:
            self._client.abort(future.id, reason="the optimization was interrupted")
        try:
            self._answer_questions(future.id, trial)
            try:
                value = future.result()
            finally:
                write_output(self._client.get_task_result(future.id, raw=False))
        finally:
            with self._lock:
                self._running.discard(future.id)
        self._client.clear(future.id)
        return value

    def _answer_questions(self, task_id: int, trial: Any) -> None:
        """Answer the questions of a trial's objective until its task has ended."""
        for message in self._client.messages(task_id):
            mark, name, args, kwargs = message.value
            value, raised = None, None
            try:
                value = self._trials.answer(trial, name, args, kwargs)
            except Exception as error:
                raised = error
            self._client.send(task_id, (mark, value, raised), quiet=True)
