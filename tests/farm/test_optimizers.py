"""optuna's studies and adaptive's runners on a real farm."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import functools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import adaptive
import optuna
import pytest

from ipytaskfarm import TaskClient
from tests.support.polling import eventually

pytestmark = pytest.mark.farm
optuna.logging.set_verbosity(optuna.logging.ERROR)


def parabola(trial: Any) -> float:
    x = trial.suggest_float("x", -10, 10)
    n = trial.suggest_int("n", 0, 3)
    trial.set_user_attr("where", trial.suggest_categorical("where", ["a", "b"]))
    assert trial.params["x"] == x
    return float((x - 2) ** 2 + n)


def study(seed: int = 1) -> Any:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def test_a_study_finds_what_it_finds_alone(tc: TaskClient) -> None:
    alone, farmed = study(), study()
    alone.optimize(parabola, n_trials=10)
    tc.optimize(farmed, parabola, n_trials=10, n_jobs=1)
    assert [trial.params for trial in farmed.trials] == [trial.params for trial in alone.trials]
    assert farmed.best_value == alone.best_value
    assert farmed.trials[0].user_attrs == alone.trials[0].user_attrs
    assert tc.queue_status()["succeeded"] == 0


def prunes_or_fails(trial: Any) -> float:
    print(f"trial {trial.number}")
    if trial.number == 1:
        raise optuna.TrialPruned
    if trial.number == 2:
        raise ZeroDivisionError("at two")
    trial.report(1.0, 0)
    return float(trial.should_prune())


def test_pruned_and_failed_trials_are_told_as_such(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    found = study()
    seen: list[int] = []
    tc.optimize(
        found, prunes_or_fails, n_trials=4, n_jobs=1, catch=ZeroDivisionError,
        callbacks=[lambda study, trial: seen.append(trial.number)],
    )  # fmt: skip
    assert [trial.state.name for trial in found.trials] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert seen == [0, 1, 2, 3]
    assert capsys.readouterr().out.splitlines() == [f"trial {n}" for n in range(4)]
    with pytest.raises(ZeroDivisionError, match="at two"):
        tc.optimize(study(), prunes_or_fails, n_trials=10, n_jobs=1)
    tc.clear()


def kills_its_engine_once(trial: Any, mark: Path) -> float:
    x = float(trial.suggest_float("x", 0, 1))
    if trial.number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_a_killed_engine_costs_no_trial(tc: TaskClient, tmp_path: Path) -> None:
    mark, found = tmp_path / "killed", study()
    tc.optimize(found, lambda trial: kills_its_engine_once(trial, mark), n_trials=6)
    assert mark.exists()
    assert len(found.trials) == 6
    assert all(trial.value == trial.params["x"] for trial in found.trials)


def stops_its_study(trial: Any) -> float:
    value = float(trial.number)
    if trial.number == 2:
        assert trial.study.best_value == 0.0
        trial.study.stop()
    return value


def test_a_study_is_stopped_by_its_callbacks_and_its_objective(tc: TaskClient) -> None:
    found = study()
    callbacks = [optuna.study.MaxTrialsCallback(2)]
    tc.optimize(found, parabola, n_trials=20, n_jobs=1, callbacks=callbacks, gc_after_trial=True)
    assert len(found.trials) == 2
    tc.optimize(found, parabola, n_trials=1, callbacks=None)
    assert len(found.trials) == 3
    stopped = study()
    tc.optimize(stopped, stops_its_study, n_trials=20, n_jobs=1)
    assert len(stopped.trials) == 3
    tc.optimize(stopped, parabola, n_trials=0)
    assert len(stopped.trials) == 3


def test_an_interrupted_optimization_aborts_its_trials(tc: TaskClient, tmp_path: Path) -> None:
    def waits_for_ever(trial: Any) -> float:
        (tmp_path / "began").touch()
        while True:
            time.sleep(0.01)

    def interrupt() -> None:
        eventually((tmp_path / "began").exists)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    found = study()
    with cf.ThreadPoolExecutor(1) as pool:
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            tc.optimize(found, waits_for_ever, n_trials=100)
    assert {trial.state.name for trial in found.trials} == {"FAIL"}
    assert len(found.trials) <= 3
    tc.clear()


def test_a_wrong_rule_costs_no_trial(tc: TaskClient) -> None:
    found = study()
    with pytest.raises(TypeError, match="colour"):
        tc.optimize(found, parabola, n_trials=1, colour="red")
    assert not found.trials


def test_an_optimization_without_end_is_refused(tc: TaskClient) -> None:
    with pytest.raises(ValueError, match="n_trials"):
        tc.optimize(study(), parabola)


def test_a_trial_says_what_it_has(tc: TaskClient) -> None:
    with pytest.raises(AttributeError, match="suggest_float"):
        tc.optimize(study(), lambda trial: trial.suggest_nothing("x"), n_trials=1)
    tc.clear()


def wave(x: float) -> float:
    return x * x


def test_adaptives_runner_takes_an_executor(tc: TaskClient) -> None:
    learner = adaptive.Learner1D(wave, (-1, 1))
    with tc.executor() as executor:
        adaptive.BlockingRunner(learner, npoints_goal=30, executor=executor)
    assert learner.npoints >= 30
    assert all(value == x * x for x, value in learner.data.items())


def wave_once(x: float, mark: Path) -> float:
    with contextlib.suppress(FileExistsError):
        mark.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def test_adaptives_runner_loses_an_engine_and_no_point(tc: TaskClient, tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    learner = adaptive.Learner1D(functools.partial(wave_once, mark=mark), (-1, 1))
    with tc.executor() as executor:
        adaptive.BlockingRunner(learner, npoints_goal=30, executor=executor)
    assert mark.exists()
    assert learner.npoints >= 30
    assert all(value == x * x for x, value in learner.data.items())
