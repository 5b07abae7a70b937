"""The page's modules as one script, for a page that is one file.

The modules are our own and a few vendored ones, so only the forms of ``import`` and ``export`` that they use are known:
names in braces, a default import, a re-export, and exported functions and constants.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_IMPORT = re.compile(
    r"""import\s*(?:(?P<default>[\w$]+)|\{(?P<names>[^}]*)\})?\s*(?:from)?\s*["'](?P<path>\./[^"']+)["'];?"""
)
_REEXPORT = re.compile(r"""export\s*\{(?P<names>[^}]*)\}\s*from\s*["'](?P<path>\./[^"']+)["'];?""")
_EXPORT = re.compile(r"export\s*\{(?P<names>[^}]*)\};?")
_DECLARED = re.compile(
    r"(?P<before>^|[;}])export (?P<kind>async function|function|const|class) (?P<name>[\w$]+)", re.MULTILINE
)
_DEFAULT = re.compile(r"(^|[;}])export default ", re.MULTILINE)


def bundle(folder: Path, main: str) -> str:
    """Return a script with all that the module `main` of this folder imports, which runs it.

    Raises:
        ValueError: a module has an import or export of another form.
    """
    return f"{bundled(folder, main)}load({json.dumps(main)});\n"


def bundled(folder: Path, main: str) -> str:
    """Return the modules, and a function `load(name)` that returns what one of them exports; as `bundle` does."""
    modules: dict[str, str] = {}
    _add(folder, main, modules)
    parts = [f"{json.dumps(name)}: (exports, load) => {{\n{text}\n}}" for name, text in modules.items()]
    return (
        "const modules = {\n" + ",\n".join(parts) + "};\nconst loaded = {};\n"
        "function load(name) { if (!loaded[name]) { loaded[name] = {}; modules[name](loaded[name], load); } "
        "return loaded[name]; }\n"
    )


def _add(folder: Path, name: str, modules: dict[str, str]) -> None:
    """Add a module behind those that it imports."""
    if name in modules:
        return
    text = (folder / name).read_text(encoding="utf-8")
    place = name.rpartition("/")[0]
    exported: list[str] = []

    def named(path: str) -> str:
        found = f"{place}/{path[2:]}" if place else path[2:]
        _add(folder, found, modules)
        return json.dumps(found)

    def imported(match: re.Match[str]) -> str:
        source = f"load({named(match['path'])})"
        if match["default"]:
            return f"const {{default: {match['default']}}} = {source};"
        return f"const {{{_pairs(match['names'], ': ')}}} = {source};" if match["names"] else f"{source};"

    def reexported(match: re.Match[str]) -> str:
        source = f"load({named(match['path'])})"
        exported.extend(f"{new}: {source}.{old}" for old, new in _renamed(match["names"]))
        return ""

    def collected(match: re.Match[str]) -> str:
        exported.extend(f"{new}: {old}" for old, new in _renamed(match["names"]))
        return ""

    def declared(match: re.Match[str]) -> str:
        exported.append(match["name"])
        return f"{match['before']}{match['kind']} {match['name']}"

    text = _REEXPORT.sub(reexported, text)
    text = _IMPORT.sub(imported, text)
    text = _EXPORT.sub(collected, text)
    text = _DECLARED.sub(declared, text)
    text = _DEFAULT.sub(r"\1exports.default = ", text)
    if re.search(r"(?:^|[;}])\s*(?:import|export)\b(?!\.)", text, re.MULTILINE):
        raise ValueError(f"{name} imports or exports in a form that cannot be bundled")
    modules[name] = f"{text}\nObject.assign(exports, {{{', '.join(exported)}}});"


def _renamed(names: str) -> list[tuple[str, str]]:
    """Return (old, new) of the names in an import or export."""
    found = []
    for part in filter(None, (each.strip() for each in names.split(","))):
        old, _, new = part.partition(" as ")
        found.append((old.strip(), (new or old).strip()))
    return found


def _pairs(names: str, between: str) -> str:
    return ", ".join(old if old == new else f"{old}{between}{new}" for old, new in _renamed(names))
