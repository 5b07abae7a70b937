"""Sentences and tables about the result cache: why a result was taken from it or not, and what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from ..core.messages.result_cache import (
    CODE_OF,
    READONLY,
    REFRESH,
    CacheEntry,
    CacheKey,
    CacheReport,
    CacheTable,
    KeyPart,
    Recipe,
)
from .tables import Column, Table
from .text import number, size, span, when

STAMP = 19
"""Characters of a date and time, which must not be cut."""
SHOWN = 8
"""The most differences that are named."""

_decode = msgspec.json.Decoder(Recipe).decode
_REFERENCES = ("part ", "member ", "module ", "name ")


def why_hit(task: int, report: CacheReport) -> str:
    """Return why a task's result was taken from the cache, or that it was not."""
    key = report.key
    if key is None:
        return _not_asked(task)
    if not report.hit:
        return f"task {task} was no hit: {why_miss(task, report)}"
    lines = [f"task {task} took its result from the cache and ran nowhere"]
    entry = report.entry
    if entry is not None:
        lines.append(
            f"task {entry.task} computed it at {when(entry.made_s)} in {span(entry.run_s)}; "
            f"it was taken {number(entry.hits, 'time')}"
        )
    else:
        lines.append("the entry has been removed since")
    parts = _parts(report.recipe)
    functions = sum(part.kind == "function" for part in parts)
    arguments = sum(not label.startswith(CODE_OF) for label, _ in key.arguments)
    versions = [f"{part.name} {part.digest}" for part in parts if part.kind in ("python", "package")]
    lines.append(
        f"the same: `{key.function}` with all that it reaches ({number(functions, 'function')}, {len(parts)} parts), "
        f"{number(arguments, 'argument')}, {', '.join(versions)}"
    )
    return "\n".join(lines)


def why_miss(task: int, report: CacheReport) -> str:
    """Return why a task's result was not taken from the cache, one difference on each line."""
    key = report.key
    if key is None:
        return _not_asked(task)
    if report.hit:
        return f"task {task} was no miss: {why_hit(task, report)}"
    lines = [*_first_lines(task, key, report)]
    if report.fault:
        lines.append(f"a result was kept for task {task}, and was not used: {report.fault}")
    if key.mode == REFRESH or report.fault:
        return "\n".join(lines)
    nearest = report.nearest
    if nearest is None:
        note = f" ({report.note})" if report.note else ""
        lines.append(f"nothing was kept of `{key.function}` before it{note}")
        return "\n".join(lines)
    found = [*differences(key, nearest, report.recipe, report.nearest_recipe)]
    if not found:
        found = _without_differences(report, nearest)
    head = f"nearest is task {nearest.task} of {when(nearest.made_s)}"
    lines.append(f"{head}: {found[0]}" if len(found) == 1 else f"{head}:")
    if len(found) > 1:
        lines += [f"- {each}" for each in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"- … and {len(found) - SHOWN} more differences")
    return "\n".join(lines)


def _not_asked(task: int) -> str:
    return f"task {task} did not ask for the cache: give it cache=True"


def _first_lines(task: int, key: CacheKey, report: CacheReport) -> Iterator[str]:
    """Yield what the task itself says: it ran in any case, failed, or leaves nothing."""
    if key.mode == REFRESH:
        yield f'task {task} was to run in any case: cache="refresh"'
    if not report.state:
        yield f"task {task} has not ended, and nothing is kept for it"
    elif report.state != "succeeded":
        yield f"not cached: task {task} {report.state.replace('failed: ', 'failed (')})"
    elif key.mode == READONLY:
        yield f'the result of task {task} was not kept: cache="readonly"'
    elif report.entry is None and report.note:
        yield f"the result of task {task} is not kept: {report.note}"
    elif not report.full_key:
        yield f"the result of task {task} has no key: a task whose result it takes failed, or was cleared"


def _without_differences(report: CacheReport, nearest: CacheEntry) -> list[str]:
    if report.full_key and nearest.key != report.full_key:
        return ["the results of other tasks among its arguments differ"]
    return ["nothing differs: the entry was not there yet, or was removed for its damage"]


class _PartChange(NamedTuple):
    part: KeyPart
    before: KeyPart | None
    gone: bool = False


def differences(key: CacheKey, other: CacheEntry, recipe: bytes, other_recipe: bytes) -> Iterator[str]:
    """Yield a sentence for each difference of two keys."""
    yield from _argument_differences(dict(key.arguments), dict(other.arguments))
    if key.recipe != other.recipe:
        changes = [*_changes(_parts(recipe), _parts(other_recipe))]
        telling = [change for change in changes if not _is_reference(change)]
        for change in telling or changes:
            yield _sentence(change, key.function)
        if not changes:
            yield f"`{key.function}` or something that it uses changed"


def _argument_differences(now: dict[str, str], before: dict[str, str]) -> Iterator[str]:
    for label, digest in now.items():
        if label not in before:
            yield f"{label} is new"
        elif before[label] != digest:
            short = _is_text(digest) and _is_text(before[label])
            yield f"{label} differs{f': {before[label]} → {digest}' if short else ''}"
    for label in before:
        if label not in now:
            yield f"{label} is not given"


def _changes(now: Sequence[KeyPart], before: Sequence[KeyPart]) -> Iterator[_PartChange]:
    old = _by_name(before)
    new = _by_name(now)
    for name, parts in new.items():
        earlier = old.get(name, [])
        known = {part.digest for part in earlier}
        for part in parts:
            if part.digest not in known:
                yield _PartChange(part, earlier[0] if earlier else None)
    for name, parts in old.items():
        if name not in new:
            yield from (_PartChange(part, None, gone=True) for part in parts)


def _by_name(parts: Iterable[KeyPart]) -> dict[tuple[str, str], list[KeyPart]]:
    found: dict[tuple[str, str], list[KeyPart]] = {}
    for part in parts:
        found.setdefault((part.kind, part.name), []).append(part)
    return found


def _is_reference(change: _PartChange) -> bool:
    """Return whether a part only names another part, which tells more."""
    return change.part.kind == "callable" or change.part.digest.startswith(_REFERENCES)


def _is_text(digest: str) -> bool:
    """Return whether the digest of a small value is the value itself."""
    return len(digest) < 40


def _sentence(change: _PartChange, function: str) -> str:
    part, before = change.part, change.before
    if part.kind in ("package", "python"):
        versions = f"{before.digest} → {part.digest}" if before is not None else part.digest
        if change.gone:
            return f"{part.name} is not imported any more"
        return f"{part.name} {versions}" if before is not None else f"{part.name} {versions} is imported now"
    used = "called" if part.kind == "function" else "used"
    user = f", {used} by `{part.user}`," if part.user and f" of `{part.user}`" not in part.name else ""
    if part.kind in ("attribute", "default", "closure variable"):
        what, user = f"{part.kind} {part.name}", ""
    else:
        what = f"{part.kind} `{part.name}`"
    if change.gone:
        return f"{what}{user} is not used any more"
    if before is None:
        return f"{what}{user} is new{_place(part)}"
    values = f": {before.digest} → {part.digest}" if _is_text(part.digest) and _is_text(before.digest) else ""
    return f"{what}{user} changed{values}{_place(part)}"


def _place(part: KeyPart) -> str:
    return f" ({part.place})" if part.place else ""


def _parts(recipe: bytes) -> tuple[KeyPart, ...]:
    return _decode(recipe).parts if recipe else ()


def cache_table(table: CacheTable) -> Table:
    """Return the entries of the cache as a table, with the totals above it."""
    entries = f"{table.count:,} {'entry' if table.count == 1 else 'entries'}"
    above = [
        f"{entries}, {size(table.size_bytes)} of {size(table.limit_bytes)}; "
        f"{number(table.hits, 'hit')} saved {span(table.saved_s)}",
        *table.notes,
    ]
    columns = [
        Column("function"), Column("computed", optional=1, least=STAMP), Column("task", optional=3),
        Column("took", right=True), Column("hits"), Column("last used", optional=2, least=STAMP),
        Column("size", right=True), Column("key", optional=4),
    ]  # fmt: skip
    rows = [
        [
            entry.function, when(entry.made_s), str(entry.task), span(entry.run_s), str(entry.hits),
            when(entry.used_s), size(entry.size_bytes), entry.key[:12],
        ]
        for entry in table.rows
    ]  # fmt: skip
    return Table(columns, rows, above=above, nothing="nothing is kept")
