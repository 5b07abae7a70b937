"""The public names that pages for users mention, and whether each exists.

A name is written as text, so that a list of names can be kept in a file:

=============================  ========================================================================
``Class.attribute.attribute``  what a page calls ``tc.sampling.start``: attributes of the public classes
``Class(argument=)``           a keyword argument
``ipytaskfarm.module.name``    something that can be imported
``$ command --flag``           the command, with or without a flag
``%magic action --option``     a magic, with or without an action and an option
=============================  ========================================================================

``python -m tests.support.public_names FOLDER`` prints the names that the pages below a folder mention.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import ipytaskfarm
from ipytaskfarm.cli import COMMANDS, application
from ipytaskfarm.client.commands import PendingResult
from ipytaskfarm.client.results import NS
from ipytaskfarm.client.tasks import CallTask
from ipytaskfarm.engine.current import CurrentTask
from ipytaskfarm.testing import SimulatedFarm

PROJECT = Path(__file__).parents[2]

CLASSES: dict[str, Any] = {
    "TaskClient": ipytaskfarm.TaskClient,
    "MultiEngineClient": ipytaskfarm.MultiEngineClient,
    "Farm": ipytaskfarm.Farm,
    "SimulatedFarm": SimulatedFarm,
    "Job": ipytaskfarm.Job,
    "TaskResult": ipytaskfarm.TaskResult,
    "CurrentTask": CurrentTask,
    "PendingResult": PendingResult,
    "errors": ipytaskfarm.errors,
    "client": ipytaskfarm.client,
}
"""Where attributes are looked up: the public classes, and two modules."""

ROOTS = {
    "tc": "TaskClient", "mec": "MultiEngineClient", "farm": "Farm", "job": "Job", "tr": "TaskResult",
    "me": "CurrentTask", "pr": "PendingResult", "errors": "errors", "client": "client",
}  # fmt: skip
"""The name of an object on a page -> the key of its class."""

CALLS = {
    "Farm": ipytaskfarm.Farm,
    "SimulatedFarm": SimulatedFarm,
    "Agents": ipytaskfarm.Agents,
    "RecycleSettings": ipytaskfarm.RecycleSettings,
    "Task": CallTask,
    "CallTask": CallTask,
    "StringTask": ipytaskfarm.StringTask,
    "MapTask": ipytaskfarm.MapTask,
    "Join": ipytaskfarm.Join,
}
"""Calls with keyword arguments on pages; a `Task` of either kind takes the arguments of both."""

OPEN = (NS,)
"""Classes whose objects have attributes that users choose."""


# ------------------------------------------------------------------------------------------------------------
# Reading pages


def pages(root: Path) -> list[Path]:
    """The pages for users below a folder of the project: not those about its inside."""
    docs = [page for page in sorted((root / "docs").glob("*.md")) if page.stem != "architecture"]
    return [root / "README.md", *docs, *sorted((root / "notebooks").glob("*.ipynb"))]


def text_of(page: Path) -> str:
    """A page as Markdown; a notebook's cells of code become blocks of code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)


def names_in(text: str) -> set[str]:
    """All public names that a page mentions, but on lines that call them missing."""
    text = "\n".join(line for line in text.splitlines() if "not yet" not in line and "gone" not in line)
    return {*_attributes(text), *_imports(text), *_arguments(text), *_commands(text), *_magics(text)}


def _attributes(text: str) -> Iterator[str]:
    pattern = re.compile(rf"(?<![\w./-])({'|'.join(ROOTS)})((?:\.[A-Za-z_]\w*)+)")
    classes = ROOTS | ({"farm": "SimulatedFarm"} if "SimulatedFarm(" in text else {})
    for line in text.splitlines():
        if "import" not in line.split("sync_imports")[0]:
            for root, path in pattern.findall(line.replace("farm.json", "")):  # a file
                yield classes[root] + path


def _imports(text: str) -> Iterator[str]:
    yield from re.findall(r"`(ipytaskfarm(?:\.[A-Za-z_]\w*)+)`", text)
    for module, names in re.findall(r"^\s*from (ipytaskfarm[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        yield from (f"{module}.{name.split(' as ')[0].strip()}" for name in names.split(",") if name.strip())


def _arguments(text: str) -> Iterator[str]:
    code = "\n".join([*re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE), *_spans(text)])
    for match in re.finditer(rf"\b({'|'.join(CALLS)})\(", code):
        for name in _keywords(code[match.end() :]):
            yield f"{match[1]}({name}=)"


def _keywords(rest: str) -> Iterator[str]:
    """The names of the arguments of a call that begins here; arguments of calls within it are not its own."""
    depth = 0
    for token in re.finditer(r"\"[^\"\n]*\"|'[^'\n]*'|[([{]|[)\]}]|[A-Za-z_]\w*\s*=(?!=)|\w+|\S", rest):
        if token[0] in "([{":
            depth += 1
        elif token[0] in ")]}":
            depth -= 1
            if depth < 0:
                return
        elif depth == 0 and re.fullmatch(r"[A-Za-z_]\w*\s*=", token[0]):
            yield token[0].rstrip("= ")


def _spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _commands(text: str) -> Iterator[str]:
    """Yield commands with their flags: from blocks and spans, and from the tables below the headings of
    docs/commands.md.
    """
    lines = [line.strip() for block in _blocks(text) for line in block.splitlines()] + _spans(text)
    for line in lines:
        for part in re.findall(r"\bipytaskfarm +([a-z][a-z-]*(?: .*)?)", line.partition("   # ")[0]):
            name = part.split()[0]
            if name in COMMANDS:
                yield f"$ {name}"
                yield from (f"$ {name} {flag}" for flag in _flags(part))
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        name = section.partition("\n")[0].strip()
        if name in COMMANDS:
            for row in re.findall(r"^\| (.*?) \|", section.partition("\n## ")[0], re.MULTILINE):
                yield from (f"$ {name} {flag}" for span in _spans(row) for flag in _flags(span))


def _flags(line: str) -> list[str]:
    return re.findall(r"(?:(?<=\s)|^)(--?[a-zA-Z][\w-]*)", line)


def _magics(text: str) -> Iterator[str]:
    spans = [*_spans(text), *re.findall(r"^(%%?[a-z]\w*.*)$", text, re.MULTILINE)]
    for span in spans:
        if match := re.match(r"(%%?(?:taskfarm|taskmap|tasks|task|autopx|pxresult|pxconfig|px|result))\b(.*)", span):
            magic, rest = match[1], match[2]
            yield magic
            words = rest.split()
            action = words[0] if words and magic in ("%task", "%taskfarm") and re.fullmatch("[a-z-]+", words[0]) else ""
            if action:
                yield f"{magic} {action}"
            yield from (f"{magic} {flag}" for flag in _flags(rest))


# ------------------------------------------------------------------------------------------------------------
# Looking for names


def exists(name: str) -> bool:
    """Return whether a name in this notation exists."""
    if name.startswith("$ "):
        return _command_exists(*name[2:].partition(" ")[::2])
    if name.startswith("%"):
        return _magic_exists(*name.partition(" ")[::2])
    if name.endswith("=)"):
        call, _, argument = name.removesuffix("=)").partition("(")
        both = (CALLS["Task"], CALLS["StringTask"]) if call == "Task" else (CALLS[call],)
        return any(argument in arguments_of(kind) for kind in both)
    root, *path = name.split(".")
    if root == "ipytaskfarm":
        return _can_be_imported(path)
    owners = [CLASSES[root]]
    if root == "client":
        owners.append(ipytaskfarm.TaskClient)  # a function's argument may have that name
    return any(_has(owner, path) for owner in owners)


def _can_be_imported(path: list[str]) -> bool:
    found: Any = ipytaskfarm
    place = "ipytaskfarm"
    for name in path:
        place += f".{name}"
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = import_module(place)
            except ImportError:
                return False
    return True


def _has(owner: Any, path: list[str]) -> bool:
    """Whether a class, or a module, has these attributes, one of the other as far as their types are known."""
    for name in path:
        if not (hasattr(owner, name) or name in _set_by_objects(owner)):
            return False
        found = inspect.getattr_static(owner, name, None) if inspect.isclass(owner) else getattr(owner, name)
        if isinstance(found, property) and found.fget is not None:
            found = _return_type(found.fget)
        if not inspect.isclass(found) or found.__module__.split(".")[0] != "ipytaskfarm" or found in OPEN:
            return True
        owner = found
    return True


def _return_type(function: Any) -> Any:
    try:
        return typing.get_type_hints(function).get("return")
    except NameError:  # imported for type checkers alone
        return None


@cache
def _set_by_objects(owner: Any) -> frozenset[str]:
    """The attributes that objects of a class have, and the class has not."""
    found: set[str] = set()
    for kind in owner.__mro__ if inspect.isclass(owner) else ():
        if kind.__module__.startswith("ipytaskfarm"):
            found |= set(getattr(kind, "__annotations__", {})) | set(getattr(kind, "__struct_fields__", ()))
            source = inspect.getsource(kind)
            found |= set(re.findall(r"\bself\.([a-z]\w*)\s*(?::[^=\n]*)?=", source))
            found |= set(re.findall(r"\bd\[\"([a-z]\w*)\"\] = ", source))
            found |= set(re.findall(r"\{\"([a-z]\w*)\": \"[a-z]\w*\"\}\.get\(attribute", source))
    return frozenset(found)


@cache
def arguments_of(kind: type) -> frozenset[str]:
    """The names of a class's arguments; those of ``**rest: Unpack[…]`` are among them."""
    names: set[str] = set()
    hints = typing.get_type_hints(kind.__init__)  # type: ignore[misc]
    for name, parameter in inspect.signature(kind.__init__).parameters.items():  # type: ignore[misc]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            names |= set(typing.get_type_hints(typing.get_args(hints[name])[0]))
        else:
            names.add(name)
    return frozenset(names)


def _command_exists(name: str, flag: str) -> bool:
    if name not in COMMANDS:
        return False
    return not flag or flag in ("-h", "--help") or flag in _flags_of(name)


@cache
def _flags_of(name: str) -> frozenset[str]:
    if name == "agent":
        from ipytaskfarm.agent.__main__ import _parser

        return frozenset(_parser()._option_string_actions)
    command = application._command(name)
    found = set()
    for keys in [*command.aliases, *command.flags]:
        found |= {("-" if len(key) == 1 else "--") + key for key in ((keys,) if isinstance(keys, str) else keys)}
    return frozenset(found)


@cache
def _magic_parsers() -> dict[str, argparse.ArgumentParser | None]:
    from ipytaskfarm.adapters.ipyparallel.magics import ViewMagics
    from ipytaskfarm.jupyter.completion import _PARSERS
    from ipytaskfarm.jupyter.px_magics import Px

    magics: dict[str, Any] = {(name if name.startswith("%") else f"%{name}"): magic for name, magic in _PARSERS.items()}
    magics |= {"%px": Px.line, "%%px": Px.cell, "%autopx": Px.autopx, "%pxconfig": Px.config}
    magics |= {"%pxresult": Px.result, "%result": Px.result}
    # ipyparallel's `%%px` has options of its own.
    found = {name: getattr(magic, "parser", None) for name, magic in magics.items()}
    return found | {"%%px of ipyparallel": getattr(ViewMagics.cell_px, "parser", None)}


def _magic_exists(magic: str, rest: str) -> bool:
    if magic not in _magic_parsers():
        return False
    parser = _magic_parsers()[magic]
    if not rest:
        return True
    if rest.startswith("-"):
        parsers = [parser, _magic_parsers()["%%px of ipyparallel"] if magic == "%%px" else None]
        return any(each is not None and rest in each._option_string_actions for each in parsers)
    if magic == "%task":
        from ipytaskfarm.jupyter.task_actions import ACTIONS

        return rest in ACTIONS
    assert parser is not None
    return rest in next(action.choices or () for action in parser._actions if action.dest == "action")


def main(root: Path) -> None:
    """Print the names that the pages below this folder mention."""
    names = {name for page in pages(root) for name in names_in(text_of(page))}
    print("\n".join(sorted(names)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
