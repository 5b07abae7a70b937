"""Docstrings and comments name what exists: a class that is renamed is renamed there too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_architecture import PACKAGE, PROJECT

CLASS_IN_TEXT = re.compile(r"(?<!`)`([A-Z]\w*)(?:\.\w+)*`(?!`)")
SHARED = ("core", "system", "storage", "transport", "serialization")
"""Parts with names that all processes know.  The engine and the agent also have names of their own."""


def defined(tree: ast.Module) -> set[str]:
    """Return the names of classes, functions, constants and members of enumerations that a module defines."""
    nodes = list(ast.walk(tree))
    found = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return found | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def missing(root: Path, part: str) -> Iterator[str]:
    """Yield the classes that texts of a part name, and that neither this part nor a shared one defines."""
    known: set[str] = set()
    for folder in {part, *SHARED}:
        for path in (root / folder).rglob("*.py"):
            known |= defined(ast.parse(path.read_text(encoding="utf-8")))
    for path in sorted((root / part).rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            names = CLASS_IN_TEXT.findall(line)
            yield from (f"{path.relative_to(root)}:{number}: {name}" for name in names if name not in known)


@pytest.mark.parametrize("part", ["core", "controller"])
def test_classes_that_docstrings_name_exist(part: str) -> None:
    assert not list(missing(PROJECT / PACKAGE, part)), "what has it become?"


def test_a_class_that_is_gone_is_found(tmp_path: Path) -> None:
    for part in SHARED:
        (tmp_path / part).mkdir()
    (tmp_path / "core" / "a.py").write_text('"""See `Here`, `Gone.field` and ``Literal``."""\nclass Here: ...\n')
    assert list(missing(tmp_path, "core")) == ["core/a.py:1: Gone"]
