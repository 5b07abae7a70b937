"""One engine's life between its start and its end: prepared, ready, retired."""

from __future__ import annotations

from ..decision import Decision
from ..eligibility import refresh_classes, wake
from ..ending import end_engine, retire
from ..farm import Engine, EngineState, Farm, Now
from ..messages import EngineCommand, EnginePrepared
from ..placement import begin_oldest
from .depends import ask_about


def prepare(farm: Farm, engine: Engine, verb: str, body: bytes, out: Decision) -> None:
    """Run one command of the farm's own before the engine's first task."""
    # Engines remember (session, n) and never run one twice: numbers of another epoch must differ.
    n = farm.epoch * 1_000_000 + farm.number()
    engine.preparing.add(n)
    out.sends.append((engine.agent, EngineCommand(engine.name, "", n, verb, body)))


def engine_is_ready(farm: Farm, engine: Engine, now: Now, out: Decision) -> None:
    """It may run tasks now."""
    engine.state = EngineState.UP
    out.sends.append((engine.agent, EnginePrepared(engine.name)))
    refresh_classes(farm, [engine])
    ask_about(farm, engine, out)
    wake(farm, engine)
    begin_oldest(farm, engine, now)
    if engine.retiring and not engine.handed:
        end_engine(farm, engine, out)
    # There may be more than are wanted now; thousands that come in one turn are counted once.
    if farm.balanced:
        farm.balanced = False
        farm.set_timer(now.mono_s, "balance")


def retire_surplus(farm: Farm, out: Decision) -> None:
    """More engines than wanted: the highest ids end as soon as they are empty."""
    shared: list[Engine] = []
    lent = 0
    for agent in farm.agents.values():
        if agent.brings is not None:
            places = agent.brings + farm.lent.get(agent.session, 0)
            if len(agent.engines) > places:
                _retire_beyond(farm, [e for e in agent.engines.values() if e.occupies], places, out)
        else:
            lent += farm.lent.get(agent.session, 0)
            shared += [engine for engine in agent.engines.values() if engine.occupies]
    _retire_beyond(farm, shared, farm.wanted + lent, out)


def _retire_beyond(farm: Farm, staying: list[Engine], places: int, out: Decision) -> None:
    if places < len(staying):
        staying.sort(key=lambda engine: engine.id)
        for engine in staying[places:]:
            retire(farm, engine, out)
