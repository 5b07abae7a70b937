"""The house rules, as a test.  A rule that matters is checked here, and its failure says why it exists.

`check(read(root))` reads the sources (it imports nothing) and returns what breaks a rule. The second half of this file
plants violations in a scratch package and asserts that each is found: a rule that cannot fail protects nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from tests.support.planted import ALLOWED, PLANTED

PROJECT = Path(__file__).parents[2]
PACKAGE = "ipytaskfarm"

# ------------------------------------------------------------------------------------------------------------
# The rules

LAYERS: dict[str, str] = {
    "version": "",
    "core": "",
    "display": "core",
    "settings": "core",
    "policies": "core",
    "errors": "core",
    "error": "errors",
    "old_modules": "",
    "environment": "core",
    "system": "core version",
    "storage": "core system",
    "transport": "core version system storage",
    "serialization": "core system storage",
    "engine": "core version system storage transport serialization",
    "controller/evaluator": "core system storage serialization",
    "agent": "core version settings system storage transport",
    "controller": "core version settings policies system storage transport",
    "client": "core display version environment system storage transport serialization",
    "launchers": "core version system storage transport",
    "deployment": "core display version settings system storage transport client launchers",
    "view": "core display",
    "web": "core display version system transport deployment view",
    "doctor": "core display version settings system storage transport agent client launchers deployment",
    "jupyter": "core display version system storage transport serialization client deployment",
    "cli": "core display version settings policies system storage transport agent controller client launchers "
    "deployment view web doctor",
    "adapters": "core display settings environment system engine client deployment view web",
    "joblib": "adapters",
    "ipyparallel": "adapters",
    "testing": "core display policies serialization engine controller/evaluator controller client",
}
"""Part -> the parts it may import, in the order of the table in ``ipytaskfarm/__init__.py``."""

WHY_LAYERS = (
    "folders say where code runs, and an import only points to a line above its own. engine, evaluator, agent, "
    "controller and client run in different processes and meet only in core/messages: what one of them needs of "
    "another is a message, or belongs into core, system, storage, transport or serialization"
)

CORE_BANNED = frozenset({
    "asyncio", "time", "random", "threading", "logging", "os", "uuid", "zmq", "sqlite3",
    "concurrent", "multiprocessing", "secrets", "select", "selectors", "shutil", "socket",
    "subprocess", "tempfile",
})  # fmt: skip
CORE_CALLS_BANNED = frozenset({"open", "input", "datetime.now", "datetime.datetime.now"})
COLLECTIONS = frozenset({"set", "dict", "list", "deque", "Counter", "OrderedDict", "defaultdict", "count"})
WHY_CORE = (
    "core decides, the shell acts. The clock, chance and the world come in as values, so that any failure is replayed "
    "from its events; purity is cheap on the first day and nearly unattainable later"
)

WHY_CORE_STATE = (
    "the state of the core stands in `SchedulerState`, which a controller may throw away and make anew from the store: "
    "what a module remembers would outlive it"
)

RESERVED: dict[str, tuple[tuple[str, ...], str]] = {
    "zmq": (
        ("transport/", "engine/lane.py", "engine/kernel.py"),
        "ZeroMQ drops messages silently when a connection is reset; delivery is made safe in one place "
        "(a kernel's own channels are ZeroMQ too, and its clients know that)",
    ),
    "sqlite3": (
        (
            "storage/store.py",
            "storage/opening.py",
            "storage/backup.py",
            "storage/task_tables.py",
            "storage/result_cache.py",
        ),
        "one writer, one commit per turn: the promise that what a client was told is on disk hangs on it "
        "(task_tables only reads, over a connection that cannot write; result_cache has a file of its own)",
    ),
    "pickle": (
        ("serialization/",),
        "how values travel (by value or by reference, what is cached, what is refused) is decided once",
    ),
    "subprocess": (
        ("launchers/", "agent/", "controller/evaluator_process.py", "engine/shell_commands.py"),
        "who starts a process must watch it, limit it and reap it; these places do",
    ),
    "distributed": (("launchers/dask/",), "Dask is an extra: a user without Dask never imports it"),
    "ipykernel": (("engine/",), "only an engine is a kernel; elsewhere it costs 0.3 s of start-up"),
    "IPython": (
        ("engine/", "jupyter/", "adapters/ipyparallel/magics.py"),
        "scripts, controller and agents do without IPython; elsewhere it costs 0.3 s of start-up "
        "(ipyparallel's magics are imported by a view in IPython alone)",
    ),
}
"""Foreign module -> how the places begin from where it may be imported, and why only from there."""
RESERVED["dill"] = RESERVED["cloudpickle"] = RESERVED["pickle"]

FORKS = frozenset({"os.fork", "os.forkpty", "pty.fork"})
FORK_ALLOWED = ("engine/zygote.py", "launchers/local.py")
WHY_FORK = (
    "a fork copies locks that other threads hold; the zygote has one thread, and is kept so, and local.py asks whether "
    "the command has one"
)

NEVER_UNPICKLE = ("controller", "agent")
WHY_UNPICKLE = (
    "controller and agents treat tasks and results as bytes: unpickling runs the sender's code, and one "
    "poisoned task would take the farm with it"
)

FUNCTION_LINES = 60
WHY_FUNCTION = "a function that does not fit on a screen does two things: elegance is lost in the last tenth"
FILE_LINES = 600
WHY_FILE = "a file that nobody reads to its end has two subjects"
PUBLIC_CLASS_LINES = 900
PUBLIC_CLASSES = frozenset({"client/taskclient.py", "client/multiengine.py"})
"""Files of classes whose methods users read: each method has its whole signature and docstring in the class."""

WHY_CIRCLE = (
    "files that import one another are one file in several pieces: none can be read, tested or moved alone. Give the "
    "part a value, or a Protocol of what it needs; an import in a function or for type checkers only hides the circle"
)
WHY_METHOD = (
    "a method stands in its class, where editors and readers look for its signature: let the class delegate in two "
    "lines, or have a part with methods of its own"
)


WHY_UTILS = "a name says what a thing is, and 'utils' says nothing: put it where its one user is, or name its subject"
WHY_EXCEPT = "it also catches KeyboardInterrupt and SystemExit, which are aborts and stops here; name what you expect"


@dataclass(frozen=True)
class Finding:
    """One broken rule."""

    where: str
    line: int
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}:{self.line}: {self.what}\n    because {self.why}."


# ------------------------------------------------------------------------------------------------------------
# Reading the sources


@dataclass
class Source:
    """One file of the package: its path below the package's folder, its tree, and its imports."""

    place: str
    tree: ast.Module
    lines: int
    imports: list[tuple[str, int]] = field(default_factory=list)
    """Full names with their lines: `from a import b` gives a.b."""

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree: each check goes over them, and walking the tree takes much longer."""
        return list(ast.walk(self.tree))

    @property
    def part(self) -> str:
        """The layer: a folder, or the module's own name."""
        nested = [part for part in LAYERS if "/" in part and self.place.startswith(f"{part}/")]
        return nested[0] if nested else self.place.split("/")[0].removesuffix(".py")

    @property
    def module(self) -> str:
        parts = self.place.removesuffix(".py").split("/")
        return ".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])

    @property
    def exempt(self) -> bool:
        """The package's own front doors may import from everywhere: they are the list of public names."""
        return self.place in ("__init__.py", "__main__.py")


def read(package: Path) -> list[Source]:
    """Return all files of the package with all their imports, also those in functions and for type checkers."""
    sources = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        source = Source(path.relative_to(package).as_posix(), ast.parse(text, str(path)), text.count("\n"))
        for node in source.nodes:
            source.imports.extend(_imported(node, source))
        sources.append(source)
    return sources


def _imported(node: ast.AST, source: Source) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, node.lineno
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = source.module.split(".")
            up = node.level - (1 if source.place.endswith("__init__.py") else 0)
            base = ".".join([*package[: len(package) - up], *([node.module] if node.module else [])])
        yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
    elif isinstance(node, ast.Attribute) and _name(node.value) == PACKAGE and not node.attr.startswith("__"):
        yield f"{PACKAGE}.{node.attr}", node.lineno
    elif isinstance(node, ast.Call) and node.args and _name(node.func).endswith(("import_module", "__import__")):
        argument = node.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value, node.lineno


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


# ------------------------------------------------------------------------------------------------------------
# The checks


def check(sources: list[Source]) -> list[Finding]:
    """Everything in these files of the package that breaks a rule."""
    findings: list[Finding] = []
    for source in sources:
        if not source.exempt:
            findings.extend(_check_layers(source))
            findings.extend(_check_reserved(source))
        if source.part == "core":
            findings.extend(_check_core(source))
        findings.extend(_check_house(source))
    findings.extend(_check_unpickling(sources))
    findings.extend(_check_circles(sources))
    findings.extend(_check_methods(sources))
    return findings


def _check_layers(source: Source) -> Iterator[Finding]:
    allowed = LAYERS.get(source.part)
    if allowed is None:
        yield Finding(source.place, 1, f"{source.part!r} is not a part of the house", WHY_LAYERS)
        return
    for name, line in source.imports:
        parts = name.split(".")
        # The bare package (`ipytaskfarm.__file__`) and its version are no dependency on anything.
        if parts[0] != PACKAGE or parts[1:] in ([], ["__version__"]):
            continue
        nested = [part for part in LAYERS if "/" in part and parts[1:3] == part.split("/")]
        target = nested[0] if nested else parts[1]
        if target not in LAYERS:
            yield Finding(source.place, line, f"imports {name}: name the part it comes from", WHY_LAYERS)
        elif target != source.part and target not in allowed.split():
            yield Finding(source.place, line, f"{source.part} imports {name}", WHY_LAYERS)


def _check_reserved(source: Source) -> Iterator[Finding]:
    for name, line in source.imports:
        places, why = RESERVED.get(name.split(".")[0], ((), ""))
        if places and not source.place.startswith(places):
            yield Finding(source.place, line, f"imports {name}: only {', '.join(places)} may", why)
        if name in FORKS and source.place not in FORK_ALLOWED:
            yield Finding(source.place, line, f"imports {name}: only {', '.join(FORK_ALLOWED)} may", WHY_FORK)
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and _name(node) in FORKS and source.place not in FORK_ALLOWED:
            yield Finding(
                source.place, node.lineno, f"uses {_name(node)}: only {', '.join(FORK_ALLOWED)} may", WHY_FORK
            )


def _check_core(source: Source) -> Iterator[Finding]:
    for name, line in source.imports:
        if name.split(".")[0] in CORE_BANNED:
            yield Finding(source.place, line, f"core imports {name}", WHY_CORE)
    for node in source.nodes:
        if isinstance(node, ast.Call) and _name(node.func) in CORE_CALLS_BANNED:
            yield Finding(source.place, node.lineno, f"core calls {_name(node.func)}()", WHY_CORE)
    for node in source.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_to_be_filled(node):
            yield Finding(source.place, node.lineno, "a module of core keeps state", WHY_CORE_STATE)


def _is_to_be_filled(node: ast.Assign | ast.AnnAssign) -> bool:
    """Whether a name of a module is given an empty collection, which only makes sense if it is filled later."""
    if isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation):
        return False
    value = node.value
    if isinstance(value, ast.Call):
        return _name(value.func).rpartition(".")[2] in COLLECTIONS and not value.args
    return (isinstance(value, ast.Dict) and not value.keys) or (isinstance(value, ast.List) and not value.elts)


def _check_house(source: Source) -> Iterator[Finding]:
    limit = PUBLIC_CLASS_LINES if source.place in PUBLIC_CLASSES else FILE_LINES
    if source.lines > limit:
        yield Finding(source.place, limit, f"{source.lines} lines, more than {limit}", WHY_FILE)
    if {"utils", "util", "helpers", "misc"} & set(source.place.removesuffix(".py").split("/")):
        yield Finding(source.place, 1, "a file or folder named so", WHY_UTILS)
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                what = f"{node.name} has {length} lines, more than {FUNCTION_LINES}"
                yield Finding(source.place, node.lineno, what, WHY_FUNCTION)
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield Finding(source.place, node.lineno, "bare except", WHY_EXCEPT)


def _check_circles(sources: Iterable[Source]) -> Iterator[Finding]:
    """Check that no file imports itself through others; every import counts, also in functions."""
    by_module = {source.module: source for source in sources}
    edges: dict[str, set[str]] = {}
    for module, source in by_module.items():
        # The module itself, or the one in which the name stands.
        names = [[name, name.rpartition(".")[0]] for name, _ in source.imports]
        edges[module] = {next((each for each in pair if each in by_module), module) for pair in names} - {module}
    for circle in _circles(edges):
        short = {name.removeprefix(f"{PACKAGE}.") for name in circle}
        place = by_module[circle[0]].place
        yield Finding(place, 1, f"a circle of imports: {' '.join(sorted(short))}", WHY_CIRCLE)


def _circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one file."""
    reached = {start: _reached(start, edges) for start in edges}
    circles = {frozenset(other for other in reached[start] if start in reached[other]) for start in edges}
    return sorted(sorted(circle) for circle in circles if len(circle) > 1)


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = edges[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return seen


def _check_methods(sources: Iterable[Source]) -> Iterator[Finding]:
    """No class body assigns a function of another module: `mark_done = operate.mark_done`."""
    functions = {
        f"{source.module}.{node.name}"
        for source in sources
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for source in sources:
        names = {name.rpartition(".")[2]: name for name, _ in source.imports}
        for owner in source.nodes:
            for node in owner.body if isinstance(owner, ast.ClassDef) else ():
                # An annotated name is a field, whose default may well be a function.
                value = node.value if isinstance(node, ast.Assign) else None
                if isinstance(value, ast.Call) and len(value.args) == 1:
                    value = value.args[0]  # staticmethod(f), property(f)
                first, _, rest = _name(value).partition(".") if value is not None else ("", "", "")
                full = ".".join(filter(None, [names.get(first, ""), rest]))
                if full in functions:
                    assert isinstance(owner, ast.ClassDef)
                    yield Finding(source.place, node.lineno, f"{owner.name} takes {full} as a method", WHY_METHOD)


def _check_unpickling(sources: Iterable[Source]) -> Iterator[Finding]:
    """No chain of imports leads from controller or agent to serialization."""
    by_module = {source.module: source for source in sources}
    for start in by_module.values():
        if start.part not in NEVER_UNPICKLE:
            continue
        chain = _chain(start, f"{PACKAGE}.serialization", by_module)
        if chain:
            yield Finding(start.place, 1, f"reaches serialization: {' -> '.join(chain)}", WHY_UNPICKLE)


def _chain(start: Source, goal: str, by_module: dict[str, Source]) -> list[str]:
    """Return the shortest chain of imports from a module to one with this prefix; empty if there is none.

    The package's own ``__init__`` is left out: it imports a name only when the name is used.
    """
    seen = {start.module}
    chains = [[start.module]]
    for chain in chains:
        for name, _ in by_module[chain[-1]].imports:
            for module in (name, name.rpartition(".")[0]):
                if f"{module}.".startswith(f"{goal}."):
                    return [*chain, module]
                if module in by_module and module not in seen and not by_module[module].exempt:
                    seen.add(module)
                    chains.append([*chain, module])
    return []


# ------------------------------------------------------------------------------------------------------------
# The house keeps its rules


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read(PROJECT / PACKAGE)


def test_the_package_keeps_the_rules(sources: list[Source]) -> None:
    findings = check(sources)
    assert not findings, "\n" + "\n".join(map(str, findings))


def test_no_two_classes_of_the_package_have_one_name(sources: list[Source]) -> None:
    """One word has one meaning: who reads `Engine` knows which one, without a look at the imports."""
    places: dict[str, list[str]] = {}
    for source in sources:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(source.place)
    assert not {name: found for name, found in places.items() if len(found) > 1}


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_the_house_limits_hold_outside_the_package_too(folder: str) -> None:
    found = [finding for source in read(PROJECT / folder) for finding in _check_house(source)]
    assert not found, "\n" + "\n".join(map(str, found))


def test_every_part_of_the_house_is_described_in_the_table_of_parts() -> None:
    """docs/architecture.md describes the layout, and readers find only folders that it describes."""
    package = PROJECT / PACKAGE
    told = (PROJECT / "docs" / "architecture.md").read_text()
    files = {path.parent if path.name == "__init__.py" else path for path in package.glob("*/__init__.py")}
    parts = {path.stem for path in files | set(package.glob("*.py"))} - {"__init__", "__main__"}
    assert parts <= set(LAYERS), "a part without a layer: give it a line in LAYERS"
    missing = {part for part in parts if f"| `{part}` |" not in told}
    assert not missing, f"give these a line in the table of docs/architecture.md: {sorted(missing)}"


# ------------------------------------------------------------------------------------------------------------
# The rules themselves: each violation, planted, is found; what is allowed is not


def plant(root: Path, files: dict[str, str]) -> list[Finding]:
    for place, text in files.items():
        path = root / PACKAGE / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return check(read(root / PACKAGE))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found_with_its_reason(name: str, tmp_path: Path) -> None:
    place, text, what, why = PLANTED[name]
    found = plant(tmp_path, {place: text})
    assert any(what in finding.what and why in finding.why for finding in found), found
    assert all(finding.where == place for finding in found)
    assert "because" in str(found[0])


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_is_not_found(name: str, tmp_path: Path) -> None:
    place, text = ALLOWED[name]
    assert plant(tmp_path, {place: text}) == []


@pytest.mark.parametrize(
    "back",
    [
        "from . import a",
        "from .a import thing",
        "import ipytaskfarm.client.a",
        "def f():\n    from . import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import Thing",
    ],
)
def test_a_circle_of_imports_is_found(back: str, tmp_path: Path) -> None:
    files = {"client/a.py": "from .b import x", "client/b.py": "from . import c", "client/c.py": back}
    (finding,) = plant(tmp_path, files)
    assert finding.what == "a circle of imports: client.a client.b client.c"
    assert finding.why == WHY_CIRCLE


def test_two_ways_to_one_file_are_no_circle(tmp_path: Path) -> None:
    files = {"client/a.py": "from . import b, c", "client/b.py": "from . import c", "client/c.py": "import os"}
    assert plant(tmp_path, files) == []


def test_unpickling_is_found_through_other_modules(tmp_path: Path) -> None:
    files = {
        "serialization/pack.py": "import pickle",
        "storage/blobs.py": "def f():\n    from ..serialization import pack",
        "controller/loop.py": "from ..storage import blobs",
    }
    (finding,) = [each for each in plant(tmp_path, files) if "reaches" in each.what]
    assert finding.what.endswith(
        "ipytaskfarm.controller.loop -> ipytaskfarm.storage.blobs -> ipytaskfarm.serialization.pack"
    )


def test_unpickling_is_found_through_a_part_of_pack(tmp_path: Path) -> None:
    files = {"serialization/digests.py": "import pickle", "agent/relay.py": "from ..serialization.digests import load"}
    (finding,) = [each for each in plant(tmp_path, files) if "reaches" in each.what]
    assert finding.what.endswith("ipytaskfarm.agent.relay -> ipytaskfarm.serialization.digests.load")


def test_each_reserved_place_is_a_place_that_exists() -> None:
    """A renamed file would leave a rule that no file can keep or break."""
    places = {place for allowed, _ in RESERVED.values() for place in allowed} | set(FORK_ALLOWED)
    files = {place for place in places if not place.endswith("/")}
    missing = {place for place in files if not list((PROJECT / PACKAGE).glob(f"{place}*"))}
    assert not missing
