"""docs/architecture.md is true: each file and function that it names exists, its tables and pictures are the code's."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from docs.drawings import IMAGES, PICTURES, lettered_moves
from tests.unit.test_architecture import LAYERS, PACKAGE, PROJECT

PAGE = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+(\.(py|md|sql)|/)$")
PLACES_ASKED_FOR = 20


@cache
def definitions(file: Path) -> frozenset[str]:
    """The names that a file defines: functions, classes, tables, and ``Class.method``."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
            inner = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in inner}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


def resolved(path: str) -> Path | None:
    """The file or folder of this path, below the package or below the project."""
    return next((root / path for root in (PROJECT / PACKAGE, PROJECT) if (root / path).exists()), None)


def missing(page: str) -> list[str]:
    """Return names on a page such as ``file.py``, ``folder/`` or ``file.py::name`` that do not exist."""
    wrong = []
    for span in SPAN.findall(re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)):
        path, _, name = span.partition("::")
        if not FILE.fullmatch(path) or path == "file.py":
            continue
        file = resolved(path)
        if file is None or (name and name not in definitions(file)):
            wrong.append(span)
    return wrong


def test_every_file_and_function_of_the_page_exists() -> None:
    assert len(re.findall(r"\.py::", PAGE)) > 100
    assert not missing(PAGE), "docs/architecture.md names what is not there: what has it become?"


def test_a_wrong_reference_would_be_found() -> None:
    page = (
        "`core/states.py::MOVES` `core/states.py::MOVED` `agent/relay.py::Relay.fly` `agent/gone.py` `cli/` `clu/`\n"
        "```\n`agent/fenced.py`\n```\n"
    )
    assert missing(page) == ["core/states.py::MOVED", "agent/relay.py::Relay.fly", "agent/gone.py", "clu/"]


@pytest.mark.parametrize("page", sorted((PROJECT / "docs").rglob("*.md")), ids=lambda page: str(page.stem))
def test_modules_that_other_pages_name_exist(page: Path) -> None:
    """A page that names a module by folder and file, such as a decision, is changed when the module moves."""
    wrong = [name for name in missing(page.read_text(encoding="utf-8")) if re.match(r"[\w-]+/[\w/-]+\.py", name)]
    assert not wrong, f"{page.name} names what is not there: what has it become?"


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_what_the_code_says(name: str) -> None:
    shown = (IMAGES / name).read_text(encoding="utf-8")
    assert shown == PICTURES[name](), f"docs/images/{name} is of yesterday: run python -m docs.drawings"
    assert f"(images/{name})" in PAGE


def test_the_page_shows_the_moves() -> None:
    shown = PAGE.partition("<!-- moves -->\n")[2].partition("<!-- /moves -->")[0]
    rows = [f"| {letter} | {before or '–'} | {after} | {what} |" for letter, before, after, what in lettered_moves()]
    expected = "\n".join(["| | from | to | what happened |", "|---|---|---|---|", *rows, ""])
    assert shown == expected, "docs/architecture.md does not show core.states.MOVES: copy the table from this message"


def section(title: str) -> str:
    """The text below a heading of the page, up to the next one."""
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def first_cells(table: str) -> list[str]:
    return [cell.strip() for cell in re.findall(r"^\| ([^|]+)\|", table, re.MULTILINE)][1:]


def test_each_part_of_the_house_has_its_sentence_in_the_order_of_the_layers() -> None:
    parts = [cell.strip("`") for cell in first_cells(section("Folders and layers"))]
    assert parts == list(LAYERS)


def test_each_step_of_a_walk_names_a_function() -> None:
    for walk in ("The way of one task", "The loss of an engine"):
        rows = [row for row in section(walk).splitlines() if row.startswith("| ")][1:]
        assert len(rows) > 10
        assert not [row for row in rows if not re.search(r"`[\w/]+\.py::?\w*", row.split("|")[3])]


def test_each_place_lies_in_the_folder_that_is_named_first() -> None:
    rows = [row.split("|") for row in section("Where to find things").splitlines() if row.startswith("| …")]
    assert len(rows) >= PLACES_ASKED_FOR
    for _, question, folders, places, _ in rows:
        folder = SPAN.findall(folders)[0]
        assert SPAN.findall(places)[0].startswith(folder), f"{question.strip()}: {places.strip()} is not in {folder}"
