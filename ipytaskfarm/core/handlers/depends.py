"""What depend functions say of engines.  They are user code and run in the evaluator; here their verdicts are kept."""

from __future__ import annotations

from ..eligibility import refresh_class
from ..farm import Decision, Depend, Engine, EngineState, Farm, Now
from ..messages import Evaluate, Evaluated, Subject


def need_verdicts(farm: Farm, digest: str, out: Decision) -> None:
    """Ask about every engine of which this function has not spoken yet."""
    depend = farm.depends.get(digest)
    if depend is None:
        depend = farm.depends[digest] = Depend(digest)
    elif len(depend.asked) >= len(farm.engines) and all(e in depend.asked for e in farm.engines):
        return
    _ask(farm, depend, list(farm.engines.values()), out)


def ask_about(farm: Farm, engine: Engine, out: Decision) -> None:
    """A new engine, or one with new properties: ask every function that tasks wait for."""
    needed = {c.key.depend for c in farm.classes.values() if c.size and c.key.depend is not None}
    for digest in sorted(needed):
        depend = farm.depends.setdefault(digest, Depend(digest))
        _ask(farm, depend, [engine], out)


def _ask(farm: Farm, depend: Depend, engines: list[Engine], out: Decision) -> None:
    subjects = []
    for engine in engines:
        if engine.state != EngineState.UP or depend.asked.get(engine.name) == engine.version:
            continue
        depend.asked[engine.name] = engine.version
        packed = engine.properties.packed if engine.properties else b""
        subjects.append(Subject(engine.name, engine.version, engine.facts, packed))
    if subjects:
        out.evaluations.append(Evaluate(farm.number(), depend.digest, subjects))


def forget_engine(farm: Farm, engine: Engine) -> None:
    """What was said of it no longer holds."""
    for depend in farm.depends.values():
        depend.verdicts.pop(engine.name, None)
        depend.asked.pop(engine.name, None)


def on_evaluated(farm: Farm, session: str, event: Evaluated, now: Now, out: Decision) -> None:
    """Verdicts: those about an engine as it is now count; one that is an error is asked for again later."""
    depend = farm.depends.get(event.depend)
    if depend is None:
        return
    failed = False
    for verdict in event.verdicts:
        engine = farm.engines.get(verdict.engine)
        if engine is None or engine.version != verdict.version:
            continue
        depend.verdicts[verdict.engine] = (verdict.version, verdict.fits, verdict.error)
        failed = failed or bool(verdict.error)
    if failed and depend.again_s is None:
        depend.again_s = now.mono_s + farm.settings.depend_again_s
        farm.set_timer(depend.again_s, "depend", depend.digest)
    _refresh(farm, depend.digest)


def ask_again(farm: Farm, digest: str, out: Decision) -> None:
    """The verdicts that were errors are asked for anew, if any task still waits for them."""
    depend = farm.depends.get(digest)
    if depend is None:
        return
    depend.again_s = None
    if not any(c.size and c.key.depend == digest for c in farm.classes.values()):
        _forget_errors(depend)
        return
    _forget_errors(depend)
    _ask(farm, depend, list(farm.engines.values()), out)


def _forget_errors(depend: Depend) -> None:
    for name in [name for name, verdict in depend.verdicts.items() if verdict[2]]:
        depend.asked.pop(name, None)


def drop_all_verdicts(farm: Farm, out: Decision) -> None:
    """For `spin`: what was said is forgotten, and asked anew for the tasks that wait."""
    waiting = {c.key.depend for c in farm.classes.values() if c.size and c.key.depend is not None}
    for digest in list(farm.depends):
        farm.depends[digest].verdicts.clear()
        farm.depends[digest].asked.clear()
        _refresh(farm, digest)
        if digest in waiting:
            need_verdicts(farm, digest, out)


def _refresh(farm: Farm, digest: str) -> None:
    for task_class in farm.classes.values():
        if task_class.key.depend == digest:
            refresh_class(farm, task_class)
