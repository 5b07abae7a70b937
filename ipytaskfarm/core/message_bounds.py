"""Bounds of what messages may have in them: the lengths of texts and of lists.

The controller keeps names, keys and rules in memory, repeats them in tables and in the texts of errors, and shows them
to all clients.  So a text without a bound would be multiplied by rows, and one client could take what belongs to all.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec.structs import replace

from .messages import AbortTasks, AgentsEnded, DrainNode, MarkTasksFailed, SendCommand, SetSticky, Submit
from .messages.result_cache import CacheKey
from .messages.task_types import RUN_BYTES_MAX, JobSpec, decode_runs, encode_runs
from .requirements import Condition

TEXT_MAX = 10_000
"""The most characters of a text: a name, a key, a word of a condition."""
LIST_MAX = 20_000
"""The most entries of a list of texts, numbers or bytes in one message."""
WORDS_MAX = 1000
"""The most values of one condition.  They are compared and shown for each engine."""
NODES_MAX, NODE_MAX = 1000, 200
"""The most nodes that one question drains, and the most characters of a node's name."""
TASKS_MAX = 20_000
"""The most tasks, functions or jobs of one submission: to take them in takes a fifth of a second."""
DIGEST_MAX = 200
"""The most characters of a function's digest, which is kept as long as the farm."""
HELD_MAX = 65_536
"""The most runs that one engine may report: batches of 2,048, and ended runs that were not acknowledged."""
REASON_MAX = 2000
"""Reasons for which people abort tasks or mark them as failed are cut to this length."""

_REASONS: dict[type, str] = {AbortTasks: "reason", MarkTasksFailed: "why", AgentsEnded: "why"}
"""Question -> the field with the reason."""
_LONG_TEXTS = frozenset({(SendCommand, "text"), (SetSticky, "text"), (JobSpec, "name"), *_REASONS.items()})
"""Fields whose texts may be long: code, and what is cut when it is used."""
_LONG_LISTS = frozenset({CacheKey})
"""Messages with one entry for each argument of a call."""

T = TypeVar("T", bound=msgspec.Struct)


def why_text_too_long(text: str, field: str = "") -> str:
    """Return why a text of a client's message is refused; "" if it is not.

    field: the field that holds it, if it is not in a list."""
    if len(text) <= TEXT_MAX:
        return ""
    what = f"its {_KNOWN_AS.get(field, field)}" if field else "a text in it"
    return f"{what} has {len(text):,} characters, and {TEXT_MAX:,} are the most: {text[:40]!r} …"


_KNOWN_AS = {"wanted": "name_or_id", "unique": "unique key"}
"""Field -> what people call it."""


def may_be_long(kind: type, name: str) -> bool:
    """Return whether the field of this name may hold a long text."""
    return (kind, name) in _LONG_TEXTS


def why_list_too_long(kind: type, values: list[object] | tuple[object, ...]) -> str:
    """Return why a list in a message of this kind is refused; "" if it is not.

    Lists of tasks and of ids have bounds of their own.
    """
    if len(values) <= LIST_MAX or kind in _LONG_LISTS or isinstance(values[0], int | msgspec.Struct):
        return ""
    return f"a list in it has {len(values):,} entries, and {LIST_MAX:,} are the most"


def why_condition_too_long(condition: Condition) -> str:
    """Return why a condition with many values is refused; "" if it is not."""
    value = condition.value
    if not isinstance(value, tuple) or len(value) <= WORDS_MAX:
        return ""
    return f"a condition in it has {len(value):,} values, and {WORDS_MAX:,} are the most"


def why_nodes_refused(question: DrainNode) -> str:
    """Return why a question with these nodes is refused; "" if it is not."""
    if len(question.nodes) > NODES_MAX:
        return f"it names {len(question.nodes):,} nodes, and {NODES_MAX:,} are the most of one question: ask in parts"
    wrong = next((each for each in question.nodes if not (0 < len(each) <= NODE_MAX and each.isprintable())), None)
    if wrong is None:
        return ""
    return f"{wrong[:40]!r} among the nodes is no name of one: 1 to {NODE_MAX} characters, which can be printed"


def why_submission_too_large(event: Submit) -> str:
    """Return why a submission is refused as a whole; "" if it is not. Clients send at most some thousand tasks."""
    for what, count in (("tasks", event.tasks), ("functions", event.functions), ("jobs", event.jobs)):
        if len(count) > TASKS_MAX:
            return f"it has {len(count):,} {what}, and {TASKS_MAX:,} are the most of one message"
    wrong = next((each for each in event.functions if len(each.digest) > DIGEST_MAX), None)
    return "" if wrong is None else f"a function's digest in it has {len(wrong.digest):,} characters"


def readable_runs(encoded: bytes) -> bytes | None:
    """Return the encoded runs of a report, at most `HELD_MAX`.  None: they cannot be read."""
    if len(encoded) > 2 * HELD_MAX * RUN_BYTES_MAX:
        return None
    try:
        runs = decode_runs(encoded)
    except msgspec.MsgspecError:
        return None
    return encoded if len(runs) <= HELD_MAX else encode_runs(runs[:HELD_MAX])


def with_short_reason(question: T) -> T:
    """Return a question with at most `REASON_MAX` characters of the reason that people have given."""
    name = _REASONS.get(type(question))
    reason: str = getattr(question, name) if name is not None else ""
    if name is None or len(reason) <= REASON_MAX:
        return question
    return replace(question, **{name: f"{reason[: REASON_MAX - 1]}…"})
