"""Results of the profilers: measurements of several engines, added up, as tables, files and pictures.

Functions of two engines are the same function when name, module and line are equal; the paths of their files may
differ.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from ..core.messages.engine_commands import CpuProfile, MemoryProfile, Place, SampleProfile
from ..display.flamegraph import flamegraph, place_label
from ..display.tables import Table
from ..display.text import CELL_MAX, safe

Row: TypeAlias = dict[str, Any]
"""Column -> raw value: seconds, bytes, counts."""
Direction: TypeAlias = Literal["asc", "desc"] | None
Columns: TypeAlias = Sequence[str | tuple[str, int]]
"""Names of columns; a pair adds the largest width in characters."""
Modules: TypeAlias = str | Iterable[str]

S = TypeVar("S")


class ProfileColumn(NamedTuple):
    """How the values of a column are shown."""

    heading: str
    text: Callable[[Any], str] = str


class ProfileKind(NamedTuple):
    """The columns of one profiler's tables."""

    columns: Mapping[str, ProfileColumn]
    usual: tuple[str, ...]
    """The columns that are shown by default."""
    sort_by: str
    aliases: Mapping[str, str] = {}
    """Names that other profilers use for these columns."""

    def column(self, name: object, what: str) -> str:
        """Return the name of a column.  Raises ValueError, which lists all columns, for an unknown one."""
        found = self.aliases.get(name, name) if isinstance(name, str) else name
        if found not in self.columns:
            raise ValueError(f"{what} must be one of {', '.join(self.columns)}, not {name!r}")
        return str(found)


def place_row(place: Place) -> Row:
    """Return the columns that identify a place."""
    return {"name": place.function, "module": place.module, "file": place.file, "line": place.line}


def is_within(module: str, roots: Sequence[str]) -> bool:
    """Return whether a module is one of `roots` or lies in one: ``numpy.linalg`` is within ``numpy``."""
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def _names(modules: Modules) -> tuple[str, ...]:
    return (modules,) if isinstance(modules, str) else tuple(modules)


class ProfileTable:
    """Selected rows of a profile in order; `rows` has them as dicts of raw values (seconds, bytes, counts).

    Args:
        kind: the columns of the profiler.
        rows: all rows.
        columns: the columns to show, in this order: names, or pairs of a name and a width in characters.
        sort_by: a column.
        sort_dir: "asc" or "desc"; None: numbers from the largest, text from A.
        max_rows: the largest number of rows; None: all.
        include, exclude: select, or leave out, code in these modules; "numpy" means all of numpy.
        strip_dirs: True names places by module, False by file.

    Raises ValueError for an unknown column or direction.
    """

    def __init__(
        self,
        kind: ProfileKind,
        rows: Iterable[Row],
        *,
        columns: Columns = (),
        sort_by: str | None = None,
        sort_dir: Direction = None,
        max_rows: int | None = None,
        include: Modules = (),
        exclude: Modules = (),
        strip_dirs: bool = True,
    ) -> None:
        self._kind = kind
        pairs = [column if isinstance(column, tuple) else (column, None) for column in columns or kind.usual]
        self._columns = [(kind.column(name, "a column"), width) for name, width in pairs]
        self._strip_dirs = strip_dirs
        wanted, unwanted = _names(include), _names(exclude)
        chosen = [
            row
            for row in rows
            if (not wanted or is_within(row["module"], wanted)) and not is_within(row["module"], unwanted)
        ]
        ordered = self._ordered(chosen, kind.column(sort_by or kind.sort_by, "sort_by"), sort_dir)
        self.rows = ordered if max_rows is None else ordered[: max(0, max_rows)]
        self.omitted = len(ordered) - len(self.rows)
        """Number of rows that `max_rows` has cut off."""

    def _ordered(self, rows: list[Row], by: str, direction: Direction) -> list[Row]:
        if direction not in (None, "asc", "desc"):
            raise ValueError(f"sort_dir must be 'asc' or 'desc', not {direction!r}")
        is_text = by in ("name", "where")
        descending = not is_text if direction is None else direction == "desc"
        known = sorted(rows, key=lambda row: (row["name"], row["module"], row["line"]))
        if by == "where":
            return sorted(known, key=self._where, reverse=descending)
        return sorted(known, key=lambda row: row[by], reverse=descending)

    def _where(self, row: Row) -> str:
        place = row["module"] if self._strip_dirs or not row["file"] else row["file"]
        return f"{place}:{row['line']}" if row["line"] else str(place)

    def _cells(self) -> Iterator[list[str]]:
        for row in self.rows:
            cells = []
            for name, width in self._columns:
                text = self._where(row) if name == "where" else self._kind.columns[name].text(row[name])
                cells.append(text if width is None or len(text) <= width else f"{text[: max(0, width - 1)]}…")
            yield cells

    def _headings(self) -> list[str]:
        return [self._kind.columns[name].heading for name, _ in self._columns]

    def _table(self) -> Table:
        above = [f"{len(self.rows):,} of {len(self.rows) + self.omitted:,} rows"] if self.omitted else []
        return Table(self._headings(), self._cells(), above=above, nothing="nothing was measured")

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table().html()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def to_dataframe(self) -> Any:
        """Return the rows as a pandas DataFrame, with raw values: seconds, bytes, counts."""
        import pandas

        return pandas.DataFrame(self.rows)


class PerEngine(dict[int, S], Generic[S]):
    """Values by engine id, which are shown one below the other."""

    def __repr__(self) -> str:
        return "\n\n".join(f"engine {engine}\n{value!r}" for engine, value in self.items()) or "no engines"

    def _repr_html_(self) -> str:
        shown = ((engine, getattr(value, "_repr_html_", lambda: "")()) for engine, value in self.items())
        return "".join(f"<div><b>engine {engine}</b></div>{part}" for engine, part in shown) or "no engines"


File: TypeAlias = str | PathLike[str]
GroupBy: TypeAlias = Literal["lineno", "filename", "traceback"]
GROUPS = ("lineno", "filename", "traceback")
SHOWN = 30
"""Number of rows in the repr."""


def _seconds(value: float) -> str:
    return f"{value:.6f}"


def _kib(value: float) -> str:
    return f"{value / 1024:.1f}"


def _kib_diff(value: float) -> str:
    return f"{value / 1024:+.1f}"


CPU = ProfileKind(
    {
        "name": ProfileColumn("name"),
        "where": ProfileColumn("where"),
        "ncall": ProfileColumn("ncall"),
        "tsub": ProfileColumn("tsub", _seconds),
        "ttot": ProfileColumn("ttot", _seconds),
        "tavg": ProfileColumn("tavg", _seconds),
    },
    ("name", "where", "ncall", "tsub", "ttot", "tavg"),
    "ttot",
    {
        "callcount": "ncall",
        "ncalls": "ncall",
        "subtime": "tsub",
        "totaltime": "ttot",
        "tottime": "ttot",
        "avgtime": "tavg",
    },
)
SAMPLES = ProfileKind(
    {
        "name": ProfileColumn("name"),
        "where": ProfileColumn("where"),
        "self": ProfileColumn("self"),
        "cumulative": ProfileColumn("cumulative"),
        "tsub": ProfileColumn("tsub", _seconds),
        "ttot": ProfileColumn("ttot", _seconds),
    },
    ("name", "where", "self", "cumulative", "tsub", "ttot"),
    "self",
    {"subtime": "tsub", "totaltime": "ttot", "tottime": "ttot"},
)
_BLOCKS = {
    "where": ProfileColumn("where"),
    "size": ProfileColumn("KiB", _kib),
    "count": ProfileColumn("count"),
    "average": ProfileColumn("average KiB", _kib),
    "callers": ProfileColumn("called from"),
}
MEMORY = ProfileKind(_BLOCKS, ("where", "size", "count", "average", "callers"), "size")
MEMORY_CHANGES = ProfileKind(
    {**_BLOCKS, "size_diff": ProfileColumn("KiB +", _kib_diff), "count_diff": ProfileColumn("count +", "{:+d}".format)},
    ("where", "size", "size_diff", "count", "count_diff", "average", "callers"),
    "size_diff",
)


class _Known:
    """Maps equal places of several engines to one `Place`."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str, int], Place] = {}

    def of(self, places: Sequence[Place]) -> list[Place]:
        return [self._places.setdefault((place.function, place.module, place.line), place) for place in places]


class CpuStats:
    """CPU time or wall time by function; its repr is a table of the first 30 functions.

    Attributes:
        rows: a dict for each function: name, module, file, line, ncall, tsub (seconds in the function itself), ttot
            (seconds with its callees), tavg (ttot of one call).
        engines: ids of the engines that were measured.
        runs: the number of tasks and commands that were measured.
        clock: "cpu" or "wall".
    """

    def __init__(self, profiles: Sequence[CpuProfile]) -> None:
        self.engines = [profile.engine for profile in profiles]
        self.runs = sum(profile.runs for profile in profiles)
        self.clock = " and ".join(sorted({profile.clock for profile in profiles}))
        self.rows = _summed_calls(profiles)

    def top(self, **settings: Any) -> ProfileTable:
        """Return a `ProfileTable` of the functions.

        Settings: columns, sort_by, sort_dir, max_rows, include, exclude, strip_dirs.
        """
        return ProfileTable(CPU, self.rows, **settings)

    def __repr__(self) -> str:
        head = f"{self.clock} time of {self.runs} runs on {_engines(self.engines)}, in seconds"
        return f"{head}\n{self.top(max_rows=SHOWN)!r}"

    def _repr_html_(self) -> str:
        return self.top(max_rows=SHOWN)._repr_html_()

    def to_dataframe(self) -> Any:
        """Return all functions as a pandas DataFrame."""
        return self.top().to_dataframe()

    def save(self, path: File) -> None:
        """Write a file for ``pstats.Stats(path)``, which snakeviz and other viewers read too; it has no callers."""
        stats: dict[tuple[str, int, str], tuple[int, int, float, float, dict[Any, Any]]] = {
            (row["file"] or row["module"], row["line"], row["name"]): (
                row["ncall"],
                row["ncall"],
                row["tsub"],
                row["ttot"],
                {},
            )
            for row in self.rows
        }
        Path(path).write_bytes(marshal.dumps(stats))


def _summed_calls(profiles: Sequence[CpuProfile]) -> list[Row]:
    known = _Known()
    sums: dict[Place, Row] = {}
    for profile in profiles:
        places = known.of(profile.places)
        for number, ncall, tsub, ttot in profile.calls:
            place = places[number]
            row = sums.setdefault(place, {**place_row(place), "ncall": 0, "tsub": 0.0, "ttot": 0.0})
            row["ncall"] += ncall
            row["tsub"] += tsub
            row["ttot"] += ttot
    for row in sums.values():
        row["tavg"] = row["ttot"] / row["ncall"] if row["ncall"] else 0.0
    return list(sums.values())


class SampleStats:
    """Samples of the running functions; its repr is a table of the first 30 functions.

    Attributes:
        stacks: a dict of stacks and the number of samples of each; a stack is a tuple of `Place`, the outermost first.
        samples: the number of all samples.
        interval_s: the seconds that one sample stands for.
        engines: ids of the engines that were sampled.
    """

    def __init__(self, profiles: Sequence[SampleProfile]) -> None:
        self.engines = [profile.engine for profile in profiles]
        self.interval_s = max((profile.interval_s for profile in profiles), default=0.0)
        self.stacks: dict[tuple[Place, ...], int] = {}
        self._profiles = profiles
        known = _Known()
        for profile in profiles:
            places = known.of(profile.places)
            for numbers, samples in profile.stacks:
                stack = tuple([places[number] for number in numbers])
                self.stacks[stack] = self.stacks.get(stack, 0) + samples
        self.samples = sum(self.stacks.values())

    @property
    def rows(self) -> list[Row]:
        """Return a dict for each function.

        Its keys are name, module, file, line, self (samples in the function itself), cumulative (samples with its
        callees), and tsub and ttot (the same in seconds).
        """
        own: dict[Place, int] = {}
        cumulative: dict[Place, int] = {}
        for stack, samples in self.stacks.items():
            own[stack[-1]] = own.get(stack[-1], 0) + samples
            for place in set(stack):  # a recursive function counts once per sample
                cumulative[place] = cumulative.get(place, 0) + samples
        return [
            {
                **place_row(place),
                "self": own.get(place, 0),
                "cumulative": samples,
                "tsub": own.get(place, 0) * self.interval_s,
                "ttot": samples * self.interval_s,
            }
            for place, samples in cumulative.items()
        ]

    def top(self, **settings: Any) -> ProfileTable:
        """Return a `ProfileTable` of the functions.

        Settings: columns, sort_by, sort_dir, max_rows, include, exclude, strip_dirs.
        """
        return ProfileTable(SAMPLES, self.rows, **settings)

    def __repr__(self) -> str:
        took = f"{self.samples} samples ({self.samples * self.interval_s:.2f} s)"
        return f"{took} on {_engines(self.engines)}\n{self.top(max_rows=SHOWN)!r}"

    def _repr_html_(self) -> str:
        return self.top(max_rows=SHOWN)._repr_html_()

    def to_dataframe(self) -> Any:
        """Return all functions as a pandas DataFrame."""
        return self.top().to_dataframe()

    def labels(self, per_engine: bool = False) -> dict[tuple[str, ...], int]:
        """Return the stacks as text, ``function (module:line)``, with their samples.

        per_engine: keep the engines apart; each stack begins with its engine.
        """
        if not per_engine:
            return _labelled(self.stacks)
        found: dict[tuple[str, ...], int] = {}
        for profile in self._profiles:
            for stack, samples in SampleStats([profile]).labels().items():
                found[f"engine {profile.engine}", *stack] = samples
        return found

    def save(self, path: File, per_engine: bool = False) -> None:
        """Write collapsed stacks, lines such as ``outer;inner 17``, which flamegraph.pl and speedscope read.

        per_engine: keep the engines apart.
        """
        lines = [
            f"{';'.join(_field(label) for label in stack)} {samples}\n"
            for stack, samples in sorted(self.labels(per_engine).items())
        ]
        Path(path).write_text("".join(lines), encoding="utf-8")

    def flamegraph(self, path: File, per_engine: bool = False) -> None:
        """Write a flame graph, a self-contained SVG picture.

        per_engine: draw the engines side by side instead of adding them up.
        """
        took = f"{self.samples} samples, {self.samples * self.interval_s:.1f} s on {_engines(self.engines)}"
        picture = flamegraph(self.labels(per_engine), took, self.interval_s)
        Path(path).write_text(picture, encoding="utf-8")


def _labelled(stacks: dict[tuple[Place, ...], int]) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for stack, samples in stacks.items():
        label = tuple([place_label(place) for place in stack])
        found[label] = found.get(label, 0) + samples
    return found


def _field(label: str) -> str:
    """Replace the separators of labels and lines in a label."""
    return "".join(c if c.isprintable() and c != ";" else " " for c in label)


class MemorySnapshot:
    """Allocated memory by the line that allocated it; its repr is a table of the first 30 lines.

    Attributes:
        engines: ids of the engines that were measured.
        traced_bytes, peak_bytes: sums over these engines.
    """

    def __init__(self, profiles: Sequence[MemoryProfile]) -> None:
        self.engines = [profile.engine for profile in profiles]
        self.traced_bytes = sum(profile.traced_bytes for profile in profiles)
        self.peak_bytes = sum(profile.peak_bytes for profile in profiles)
        self._profiles = list(profiles)

    def rows(self, group_by: GroupBy = "lineno", compare_to: MemorySnapshot | None = None) -> list[Row]:
        """Return a dict for each line, file or traceback.

        Its keys are module, file, line, size and average (bytes), count (blocks), and callers (for tracebacks).  With
        `compare_to` size_diff and count_diff are added, and lines that hold no memory any more are included.
        """
        if group_by not in GROUPS:
            raise ValueError(f"group_by must be one of {', '.join(GROUPS)}, not {group_by!r}")
        now = _summed_blocks(self._profiles, group_by)
        before = {} if compare_to is None else _summed_blocks(compare_to._profiles, group_by)
        rows = []
        for places in now | before:
            size, count = now.get(places, (0, 0))
            row = {**place_row(places[-1]), "size": size, "count": count, "average": size / count if count else 0.0}
            row["callers"] = " < ".join(f"{place.module}:{place.line}" for place in reversed(places[:-1]))
            if compare_to is not None:
                size_before, count_before = before.get(places, (0, 0))
                row |= {"size_diff": size - size_before, "count_diff": count - count_before}
            rows.append(row)
        return rows

    def top(self, group_by: GroupBy = "lineno", compare_to: Any = None, **settings: Any) -> ProfileTable:
        """Return a `ProfileTable` of the lines, files or tracebacks.

        Args:
            group_by: "lineno", "filename", or "traceback", which is as deep as `start` was told.
            compare_to: an earlier snapshot of the same engines, or its file; the largest growth comes first.
            settings: columns, sort_by, sort_dir, max_rows, include, exclude, strip_dirs.
        """
        kind = MEMORY if compare_to is None else MEMORY_CHANGES
        if "columns" not in settings and group_by != "traceback":
            settings["columns"] = [name for name in kind.usual if name != "callers"]
        return ProfileTable(
            kind, self.rows(group_by, None if compare_to is None else snapshot_of(compare_to)), **settings
        )

    def of(self, engine: int) -> MemorySnapshot:
        """Return the snapshot of one engine; it is empty if the engine was not measured."""
        return MemorySnapshot([profile for profile in self._profiles if profile.engine == engine])

    def __repr__(self) -> str:
        head = f"{self.traced_bytes / 2**20:.1f} MiB on {_engines(self.engines)}"
        return f"{head}\n{self.top(max_rows=SHOWN)!r}"

    def _repr_html_(self) -> str:
        return self.top(max_rows=SHOWN)._repr_html_()

    def to_dataframe(self) -> Any:
        """Return all lines as a pandas DataFrame."""
        return self.top().to_dataframe()

    def save(self, path: File) -> None:
        """Write the snapshot as JSON, which ``compare_to=path`` reads."""
        Path(path).write_bytes(msgspec.json.encode(self._profiles))


def snapshot_of(found: Any) -> MemorySnapshot:
    """Return one snapshot from a snapshot, from a dict of snapshots by engine, or from the file of a snapshot.

    Raises TypeError for any other object, ValueError for a file that is no snapshot.
    """
    if isinstance(found, MemorySnapshot):
        return found
    if isinstance(found, PerEngine):
        return MemorySnapshot([profile for snapshot in found.values() for profile in snapshot._profiles])
    if not isinstance(found, str | PathLike):
        raise TypeError(f"a snapshot or the path of one expected, not {type(found).__name__}")
    try:
        return MemorySnapshot(msgspec.json.decode(Path(found).read_bytes(), type=list[MemoryProfile]))
    except msgspec.DecodeError as error:
        raise ValueError(f"{safe(found, CELL_MAX)} is not a snapshot that was saved: {error}") from None


def _summed_blocks(profiles: Sequence[MemoryProfile], group_by: GroupBy) -> dict[tuple[Place, ...], tuple[int, int]]:
    known = _Known()
    sums: dict[tuple[Place, ...], tuple[int, int]] = {}
    for profile in profiles:
        places = profile.places
        if group_by == "filename":
            places = [Place("", place.module, place.file, 0) for place in places]
        places = known.of(places)
        for numbers, size, count in profile.blocks:
            wanted = numbers if group_by == "traceback" else numbers[-1:]
            key = tuple([places[number] for number in wanted])
            size_before, count_before = sums.get(key, (0, 0))
            sums[key] = size_before + size, count_before + count
    return sums


def _engines(ids: Sequence[int]) -> str:
    return f"engine {ids[0]}" if len(ids) == 1 else f"{len(ids)} engines"
