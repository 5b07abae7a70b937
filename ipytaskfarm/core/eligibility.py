"""Which engines may serve which class of tasks.

Restricted classes keep the set of their engines (`TaskClass.eligible`); it is worked out anew only when something it
rests on has changed: an engine came or went, a depend function spoke, a task was rejected.
"""

from __future__ import annotations

from .farm import Engine, EngineState, Farm
from .queue import OPEN_CLASS, ClassKey, TaskClass

_KEPT_CLASSES = 1024
"""Empty classes are kept for their measured durations up to this many."""


def class_for(farm: Farm, key: ClassKey) -> TaskClass:
    """The class of that key, made if it is new."""
    task_class = farm.classes.get(key)
    if task_class is None:
        if len(farm.classes) >= 2 * _KEPT_CLASSES:
            _drop_empty_classes(farm)
        task_class = farm.classes[key] = TaskClass(key)
        if task_class.restricted:
            for engine in farm.engines.values():
                if engine.state == EngineState.UP and may_serve(farm, engine, key):
                    task_class.eligible[engine] = None
    elif key.own is not None:
        # The task comes back with one more rejection.
        task_class.eligible = {e: None for e in task_class.eligible if may_serve(farm, e, key)}
    return task_class


def _drop_empty_classes(farm: Farm) -> None:
    empty = [key for key, c in farm.classes.items() if c.size == 0 and key != OPEN_CLASS]
    for key in empty[: max(0, len(empty) - _KEPT_CLASSES // 2)]:
        del farm.classes[key]


def may_serve(farm: Farm, engine: Engine, key: ClassKey) -> bool:
    """Whether this engine may run tasks of this class now."""
    if not _suits(farm, engine, key):
        return False
    if key.own is not None and _rejected(farm, engine, key.own):
        return False
    # Avoided engines are the last choice, not a forbidden one: alone, they serve.
    if not key.avoid or engine.name not in key.avoid:
        return True
    others = (e for e in farm.engines.values() if e.state == EngineState.UP and e.name not in key.avoid)
    return not any(_suits(farm, e, key) for e in others)


def _suits(farm: Farm, engine: Engine, key: ClassKey) -> bool:
    if key.targets is not None and engine.id not in key.targets:
        return False
    if key.depend is not None:
        depend = farm.depends.get(key.depend)
        verdict = depend.verdicts.get(engine.name) if depend else None
        return verdict is not None and verdict[0] == engine.version and verdict[1]
    return True


def _rejected(farm: Farm, engine: Engine, task_id: int) -> bool:
    task = farm.tasks.get(task_id)
    rejection = task.rejections.get(engine.name) if task and task.rejections else None
    return rejection is not None and rejection.version == engine.version and rejection.until_s > 0.0


def refresh_class(farm: Farm, task_class: TaskClass) -> None:
    """Work out anew which engines may serve a class: engines came or went, a verdict or a rejection changed."""
    if not task_class.restricted:
        return
    task_class.eligible = {
        e: None for e in farm.engines.values() if e.state == EngineState.UP and may_serve(farm, e, task_class.key)
    }
    if task_class.size:
        announce(farm, task_class)


def refresh_classes(farm: Farm) -> None:
    """After an engine came or went."""
    for task_class in farm.classes.values():
        refresh_class(farm, task_class)


def announce(farm: Farm, task_class: TaskClass) -> None:
    """A class has an earlier head, or other engines: make it known where it can be found."""
    if not task_class.restricted:
        farm.open_heads.push(task_class)
        return
    for engine in task_class.eligible:
        engine.heads.push(task_class)
        if engine in farm.waiting or engine in farm.roomy:
            wake(farm, engine)


def wake(farm: Farm, engine: Engine) -> None:
    """Look at this engine in this turn."""
    farm.waiting.pop(engine, None)
    farm.roomy.pop(engine, None)
    farm.hungry[engine] = None


def asleep(farm: Farm, engine: Engine) -> None:
    """Nothing more for this engine."""
    farm.waiting.pop(engine, None)
    farm.roomy.pop(engine, None)
    farm.hungry.pop(engine, None)
    farm.laden.pop(engine, None)
