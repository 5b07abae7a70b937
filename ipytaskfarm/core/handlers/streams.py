"""Output of running tasks, for clients that wait and want to see it.

Nothing is sent without a question. A client asks a few times a second, each answer is limited, and an engine that has
not answered is not asked again. So neither a flood of output nor a sleeping client costs anything, and an engine of
which C code holds the GIL answers when it can. All of a task's output comes with its result in any case.
"""

from __future__ import annotations

from ..messages import ANY_ATTEMPT, CommandOutputs, NumberReply, Output, OutputQuery, Outputs, OutputText
from ..messages.task_types import RunKey
from ..scheduler.decision import Decision, Now
from ..scheduler.entries import EngineEntry, EngineState
from ..scheduler.state import SchedulerState
from .running_tasks import is_wanted

PATIENCE_S = 5.0
"""An answer that has not come within this time was lost with a connection."""

OUTPUTS_MAX = 100_000
"""The number of queries that may wait for the answers of engines; beyond it, the oldest is not waited for."""


def on_outputs(farm: SchedulerState, session: str, n: int, question: Outputs, now: Now, out: Decision) -> None:
    """Ask the engines that run these tasks for output, and answer how many were asked.

    Their answers are passed on as `Output`; an item of a chunk is shown by the chunk's."""
    holder = farm.tasks.holder
    wanted = None if question.ids is None else {holder(task) for task in question.ids}
    seen = {(holder(task), attempt): known for task, attempt, *known in question.seen}
    asked = 0
    for engine in farm.engines.by_name.values():
        if engine.state != EngineState.UP:
            continue
        for run in engine.running():
            if is_wanted(farm, session, run[0], wanted):
                known = seen.get(run) or seen.get((run[0], ANY_ATTEMPT), [0, 0, 0])
                asked += _ask(farm, session, engine, run, known, "", question.empty, now, out)
    out.answer(session, n, NumberReply(asked))


def on_command_outputs(
    farm: SchedulerState, session: str, n: int, question: CommandOutputs, now: Now, out: Decision
) -> None:
    """Ask the engines that have not answered a command of this session for the command's output.

    Their answers are passed on as `Output`.
    """
    seen = {engine: known for engine, *known in question.seen}
    asked = 0
    for engine in farm.engines.by_name.values():
        if (session, question.number, engine.name) in farm.requests.commands:
            run = -1, question.number
            asked += _ask(farm, session, engine, run, seen.get(engine.id, [0, 0, 0]), session, False, now, out)
    out.answer(session, n, NumberReply(asked))


def _ask(
    farm: SchedulerState, session: str, engine: EngineEntry, run: RunKey, known: list[int], whose: str,
    empty: bool, now: Now, out: Decision,
) -> bool:  # fmt: skip
    """Ask an engine, unless it has yet to answer an earlier question of this client; return whether it was asked."""
    requests = farm.requests
    since_s, before = requests.outputs_asked.get((session, engine.name, run), (None, 0))
    if since_s is not None and now.mono_s - since_s < PATIENCE_S:
        return False
    requests.outputs.pop(before, None)
    while len(requests.outputs) >= OUTPUTS_MAX:
        requests.outputs_asked.pop(requests.outputs.pop(next(iter(requests.outputs)))[:3], None)
    number = farm.number()
    requests.outputs_asked[session, engine.name, run] = now.mono_s, number
    requests.outputs[number] = (session, engine.name, run, empty)
    stdout, stderr, serial = known
    out.sends.append((engine.agent, OutputQuery(number, engine.name, run, stdout, stderr, serial, whose)))
    return True


def on_output_text(farm: SchedulerState, session: str, event: OutputText, now: Now, out: Decision) -> None:
    """Pass an engine's output on to the client that asked."""
    asked = farm.requests.outputs.pop(event.n, None)
    if asked is None:
        return
    farm.requests.outputs_asked.pop(asked[:3], None)
    engine = farm.engines.by_name.get(asked[1])
    if engine is not None and (event.stdout or event.stderr or event.displays or event.items or asked[3]):
        shown = Output(
            event.run, engine.id, event.stdout, event.stderr, event.seen, event.displays, event.serial, event.items
        )
        out.sends.append((asked[0], shown))


def forget_outputs(farm: SchedulerState, engine: EngineEntry) -> None:
    """Forget the queries that a lost engine will not answer."""
    for number in [number for number, asked in farm.requests.outputs.items() if asked[1] == engine.name]:
        farm.requests.outputs_asked.pop(farm.requests.outputs.pop(number)[:3], None)
