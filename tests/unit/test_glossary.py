"""docs/glossary.md has each word of the project once, and every word that names a message."""

from __future__ import annotations

import ast
import re

from tests.unit.test_architecture import PACKAGE, PROJECT

GLOSSARY = PROJECT / "docs" / "glossary.md"

ORDINARY: dict[str, str] = {
    "to have, move or change something, as in any program": (
        "change changed check checked compact counted done execute exit find forget hand left list out piece read "
        "reload remove request saved send set shutdown start stop want write written"
    ),
    "to speak: who asks and who answers is in the struct's own sentence": "answer reply report status",
    "a shape of data": "flag line link part number place row rows spec string summary table text",
    "a thing that every reader knows": "connection cpu ended error failed memory process sample work",
    "part of a phrase": "down here of to up why",
}
"""Why these words need no line in the glossary -> the words."""


def headwords() -> list[str]:
    """The first cell of each row, without its stars."""
    rows = re.findall(r"^\| \*\*(.*?) \|", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    return [row.replace("*", "") for row in rows]


def forms() -> set[str]:
    """All words that have a line, alone or as a part of an expression, in the singular."""
    return {singular(word) for row in headwords() for word in re.findall(r"\w+", row.lower())}


def singular(word: str) -> str:
    return word.removesuffix("s") if not word.endswith(("ss", "us")) else word


def words_of_messages() -> dict[str, str]:
    """Return a dict of the words in names of core/messages, each with one such class."""
    found = {}
    for path in sorted((PROJECT / PACKAGE / "core" / "messages").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                words = re.findall(r"[A-Z][a-z]*", node.name)
                found.update({singular(word.lower()): node.name for word in words})
    return found


def ordinary() -> set[str]:
    return {singular(word) for words in ORDINARY.values() for word in words.split()}


def test_every_word_of_a_message_is_in_the_glossary() -> None:
    words = words_of_messages()
    assert len(words) > 100
    missing = {word: name for word, name in words.items() if word not in forms() | ordinary()}
    assert not missing, "give each a line in docs/glossary.md, or in ORDINARY with the reason"


def test_no_word_is_called_ordinary_without_need() -> None:
    assert not ordinary() - words_of_messages().keys(), "no message has these words any more"
    with_a_line = {singular(word.strip().lower()) for row in headwords() for word in row.split(",")}
    assert not ordinary() & with_a_line, "these have a line in the glossary"


def test_each_word_has_one_line_in_its_place() -> None:
    words = [word.strip().lower() for row in headwords() for word in row.split(",")]
    assert len(words) == len(set(words)), {word for word in words if words.count(word) > 1}
    first = [row.lower() for row in headwords()]
    assert first == sorted(first)
