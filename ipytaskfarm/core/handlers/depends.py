"""Verdicts of depend and locality functions on engines.

The functions are user code and run in the evaluator; only their verdicts are kept here.
"""

from __future__ import annotations

from ..messages.evaluator import Evaluate, Evaluated, Subject
from ..scheduler.decision import Decision, Now
from ..scheduler.eligibility import refresh_class
from ..scheduler.entries import EngineEntry, EngineState
from ..scheduler.functions import FunctionVerdicts, locality_key
from ..scheduler.state import SchedulerState
from ..scheduler.task import ClassKey


def ask_for_verdicts(farm: SchedulerState, digest: str, session: str, out: Decision, scored: bool = False) -> None:
    """Ask about every engine that this function has not judged yet, for a task of this session.

    scored: it is a locality function."""
    depend = _depend(farm, digest, scored, session)
    if len(depend.asked) >= len(farm.engines.by_name) and all(e in depend.asked for e in farm.engines.by_name):
        return
    _ask(farm, depend, list(farm.engines.by_name.values()), out)


def _depend(farm: SchedulerState, digest: str, scored: bool, session: str = "") -> FunctionVerdicts:
    key = locality_key(digest) if scored else digest
    depend = farm.functions.by_key.get(key)
    if depend is None:
        depend = farm.functions.by_key[key] = FunctionVerdicts(digest, scored, session)
    return depend


def _needed(farm: SchedulerState) -> list[tuple[str, bool]]:
    """Return (digest, scored) of every function that waiting tasks need."""
    needed: set[tuple[str, bool]] = set()
    for task_class in farm.queues.classes.values():
        if task_class.size and task_class.restricted:
            needed.update(_functions_of(task_class.key))
    return sorted(needed)


def _functions_of(key: ClassKey) -> list[tuple[str, bool]]:
    found = [(key.depend, False)] if key.depend is not None else []
    if key.requirements is not None and key.requirements.locality is not None:
        found.append((key.requirements.locality, True))
    return found


def ask_about_engine(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    """Ask all functions that waiting tasks need about a new engine, or one with new properties."""
    for digest, scored in _needed(farm):
        _ask(farm, _depend(farm, digest, scored), [engine], out)


def _ask(farm: SchedulerState, depend: FunctionVerdicts, engines: list[EngineEntry], out: Decision) -> None:
    subjects = []
    for engine in engines:
        if engine.state != EngineState.UP or depend.asked.get(engine.name) == engine.version:
            continue
        depend.asked[engine.name] = engine.version
        packed = engine.properties.packed if engine.properties else b""
        subjects.append(Subject(engine.name, engine.version, engine.facts, packed))
    if subjects:
        question = Evaluate(farm.number(), depend.digest, subjects, scored=depend.scored, session=depend.session)
        out.evaluations.append(question)


def forget_engine(farm: SchedulerState, engine: EngineEntry) -> None:
    for depend in farm.functions.by_key.values():
        depend.verdicts.pop(engine.name, None)
        depend.asked.pop(engine.name, None)


def on_evaluated(farm: SchedulerState, session: str, event: Evaluated, now: Now, out: Decision) -> None:
    """Take over verdicts about engines with their present properties.

    Verdicts that are errors are asked for again later.
    """
    key = locality_key(event.depend) if event.scored else event.depend
    depend = farm.functions.by_key.get(key)
    if depend is None:
        return
    failed = False
    for verdict in event.verdicts:
        engine = farm.engines.by_name.get(verdict.engine)
        if engine is None or engine.version != verdict.version:
            continue
        depend.verdicts[verdict.engine] = (verdict.version, verdict.fits, verdict.error, verdict.score)
        failed = failed or bool(verdict.error)
    if failed and depend.again_s is None:
        depend.again_s = now.mono_s + farm.settings.depend_again_s
        farm.timers.set(depend.again_s, "depend", key)
    _refresh(farm, depend)


def ask_again(farm: SchedulerState, key: str, out: Decision) -> None:
    """Ask again for the verdicts that were errors, if a task still waits for them."""
    depend = farm.functions.by_key.get(key)
    if depend is None:
        return
    depend.again_s = None
    _forget_errors(depend)
    if (depend.digest, depend.scored) in _needed(farm):
        _ask(farm, depend, list(farm.engines.by_name.values()), out)


def _forget_errors(depend: FunctionVerdicts) -> None:
    for name in [name for name, verdict in depend.verdicts.items() if verdict[2]]:
        depend.asked.pop(name, None)


def drop_all_verdicts(farm: SchedulerState, out: Decision) -> None:
    """Forget all verdicts, and ask again for those that waiting tasks need.  Called by `spin`."""
    waiting = _needed(farm)
    for depend in list(farm.functions.by_key.values()):
        depend.verdicts.clear()
        depend.asked.clear()
        _refresh(farm, depend)
        if (depend.digest, depend.scored) in waiting:
            ask_for_verdicts(farm, depend.digest, depend.session, out, depend.scored)


def _refresh(farm: SchedulerState, depend: FunctionVerdicts) -> None:
    for task_class in farm.queues.classes.values():
        if (depend.digest, depend.scored) in _functions_of(task_class.key):
            refresh_class(farm, task_class)
