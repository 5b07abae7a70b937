"""What the documentation names is there: links, anchors, commands and their flags; and its code is Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ipytaskfarm
from ipytaskfarm.cli import COMMANDS
from ipytaskfarm.cli.application import _command

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(PROJECT))
    for path in (*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), *(PROJECT / "docs").glob("*/*.md"))
    if "_build" not in path.parts
)
FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
OF_ALL = {"help", "help-all", "version"}
"""Flags that no command declares."""


def text_of(page: str) -> str:
    return (PROJECT / page).read_text()


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and Sphinx make them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_on_a_page_lead_somewhere(page: str) -> None:
    folder = (PROJECT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text_of(page))):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else PROJECT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_the_code_on_a_page_is_python(page: str) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE):
        if not block.startswith(("%", ">>>")):
            compile(block, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_on_a_page_exist_and_have_these_flags(page: str) -> None:
    for command, rest in re.findall(r"(?:^|`)ipytaskfarm ([a-z]+(?:-[a-z]+)*)([^`\n]*)", text_of(page), re.MULTILINE):
        assert command in COMMANDS, command
        if command in ("controller", "agent"):
            continue  # `python -m ipytaskfarm.agent` reads their flags
        known = {flag for keys in (*_command(command).aliases, *_command(command).flags) for flag in keys} | OF_ALL
        for flag in re.findall(r"(?<!\S)--([a-z-]+)", rest.partition("#")[0]):
            assert flag in known, f"ipytaskfarm {command} --{flag}"


def test_what_is_called_missing_is_missing() -> None:
    """docs/migrating.md lists missing features: when one of them is built, its line has to change."""
    told_too_late = []
    for section in re.split(r"^### ", text_of("docs/migrating.md"), flags=re.MULTILINE)[1:]:
        cls = getattr(ipytaskfarm, re.split(r"\W", section)[0], None)
        for names in re.findall(r"not yet: ([^|]*)", section):
            missing = re.findall(r"`([a-z_]+)`", names)
            told_too_late += [f"{cls}.{name}" for name in missing if cls is not None and hasattr(cls, name)]
    assert not told_too_late
