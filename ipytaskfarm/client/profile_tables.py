"""Show a profile as a table: filtered by module, sorted, shortened, and shown as text, HTML or a DataFrame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from ..core.messages.engine_commands import Place
from ..display.tables import Table

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
