"""Finds which definitions of by-value modules a function reaches, by their sources.

A module travels with its whole source, but a result depends only on what the called function reaches.  So the
top-level statements of a source are looked at one by one.  Comments, blank lines, positions and docstrings do not
count.

The search may find too much and must not find too little: every identifier in a definition counts as a use of the
definition of that name, and statements that may have effects when the module is imported (calls, decorators, classes
with bases or with calls in their bodies, loops …) always count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .module_bundles import Bundle, ModuleSource, mentioned, resolve, resolve_one

ALL = "*"
_DYNAMIC = frozenset(
    {
        "globals", "locals", "eval", "exec", "vars", "dir", "getmembers", "__dict__",
        "import_module", "__import__", "resolve_name",
    }
)  # fmt: skip
"""A definition with one of these names may reach any definition of its module."""
_IMPORTS = frozenset({"import_module", "__import__", "run_module", "resolve_name", "iter_modules", "walk_packages"})
"""A definition with one of these names may reach any definition of any module."""


class Definition(NamedTuple):
    """A top-level statement that binds a name."""

    kind: str
    digest: str
    uses: frozenset[str]
    line: int
    whole: frozenset[str] = frozenset()
    """The names among them that are used otherwise than by an attribute: a module of such a name is passed on."""


_PRESENT = Definition("module", "present", frozenset(), 0)
"""Stands for a module that may be imported under a computed name: there may be nothing in it."""


class _Statements(NamedTuple):
    """The statements of one source."""

    definitions: dict[str, tuple[Definition, ...]]
    """Name -> the statements that bind it and have no other effect."""
    effects: Definition
    """All other statements together."""
    imports: dict[str, tuple[str, ...]]
    """Bound name -> the modules and members that it may mean, with leading dots for relative ones."""
    stars: tuple[str, ...]
    """Modules of which all names are imported."""


class _Seen(NamedTuple):
    """What one look at a statement found."""

    uses: frozenset[str]
    text: str
    """The whole statement without positions and docstrings: equal for equal code, and only for that."""
    imports: list[ast.Import | ast.ImportFrom]
    calls: bool
    """Whether it calls something, awaits, or binds a name inside an expression."""
    whole: frozenset[str]
    """See `Definition.whole`."""


_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_CALLING = (ast.Call, ast.Await, ast.NamedExpr)
_ACTING = (*_CALLING, ast.AugAssign, ast.Delete, ast.Global)
"""Nodes in the body of a class, or in the head of a function, that may change something else."""
_PLAIN_DECORATORS = frozenset(
    {
        "abstractmethod", "cache", "cached_property", "classmethod", "deleter", "final", "getter", "overload",
        "override", "property", "setter", "staticmethod",
    }
)  # fmt: skip
"""Decorators in classes that only wrap the function."""


def _look(statement: ast.stmt) -> _Seen:
    """Return all that is wanted of a statement, in one walk: sources may have a hundred thousand lines."""
    uses: set[str] = set()
    text: list[str] = []
    imports: list[ast.Import | ast.ImportFrom] = []
    calls = False
    names: Counter[str] = Counter()
    left: list[ast.AST] = [statement]
    while left:
        node = left.pop()
        kind = type(node)
        text.append(kind.__name__)
        if kind is ast.Name:
            uses.add(node.id)  # type: ignore[attr-defined]
            names[node.id] += 1  # type: ignore[attr-defined]
        elif kind is ast.Attribute:
            uses.add(node.attr)  # type: ignore[attr-defined]
            if type(node.value) is ast.Name:  # type: ignore[attr-defined]
                names[node.value.id] -= 1  # type: ignore[attr-defined]
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                uses.update(part for part in node.value.split(".") if part.isidentifier())
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
            uses.update(alias.name.rpartition(".")[2] for alias in node.names)
        elif isinstance(node, _CALLING):
            calls = True
            if isinstance(node, ast.Call) and _computes_a_name(node):
                uses.add("globals")
        # The order in which the nodes follow is known from what was noted before, so no two trees have one text.
        for name in kind._fields:
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                text.append("+")
                left.append(value)
            elif type(value) is list:
                if name == "body" and isinstance(node, _DOCUMENTED) and _is_text(value[0]):
                    value = value[1:]
                text.append(f"{len(value)}[")
                for each in value:
                    if isinstance(each, ast.AST):
                        text.append("+")
                        left.append(each)
                    else:  # a name of `global`; None among the keys of a dict with `**`
                        text.append(repr(each))
            else:
                text.append(repr(value))
    whole = frozenset(name for name, count in names.items() if count)
    return _Seen(frozenset(uses), "\n".join(text), imports, calls, whole)


def _is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is a text without effect, such as a docstring."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _computes_a_name(call: ast.Call) -> bool:
    named = isinstance(call.func, ast.Name) and call.func.id == "getattr" and len(call.args) > 1
    return named and not isinstance(call.args[1], ast.Constant)


def _digest(texts: Iterable[str]) -> str:
    text = "\n\n".join(texts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def _bound(statement: ast.stmt, calls: bool) -> tuple[str, ...]:
    """Return the names that a statement binds, if it has no other effect; () for any other statement."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return () if statement.decorator_list or _acts_now(statement) else (statement.name,)
    if isinstance(statement, ast.ClassDef):
        plain = not (statement.decorator_list or statement.bases or statement.keywords or _acts_now(statement))
        return (statement.name,) if plain else ()
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        if calls:
            return ()
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [name for target in targets for name in _names_of(target)]
        return () if "" in names else tuple(names)
    return ()


def _acts_now(definition: ast.stmt) -> bool:
    """Return whether a definition has an effect when it is executed: outside of the bodies of its functions."""
    left: list[ast.AST] = [definition]
    while left:
        node = left.pop()
        if isinstance(node, _ACTING):
            return True
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            return True
        if isinstance(node, ast.Lambda):
            left.append(node.args)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not all(map(_is_plain_decorator, node.decorator_list)):
                return True
            left += [node.args, *([node.returns] if node.returns is not None else ())]
        else:
            left += ast.iter_child_nodes(node)
    return False


def _is_plain_decorator(decorator: ast.expr) -> bool:
    name = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
    return name in _PLAIN_DECORATORS


def _names_of(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for each in target.elts:
            yield from _names_of(each)
    else:
        yield ""  # an attribute or an item of something


def _is_for_scripts(statement: ast.stmt) -> bool:
    """Return whether it is ``if __name__ == "__main__":``, which does nothing in an imported module."""
    test = statement.test if isinstance(statement, ast.If) and not statement.orelse else None
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Name)
        and test.left.id == "__name__"
        and isinstance(test.ops[0], ast.Eq)
    )


def _kind(statement: ast.stmt) -> str:
    if isinstance(statement, ast.ClassDef):
        return "class"
    return "global" if isinstance(statement, ast.Assign | ast.AnnAssign) else "function"


@functools.lru_cache(maxsize=1024)
def _parsed(source: bytes) -> _Statements:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        whole = hashlib.blake2b(source, digest_size=20).hexdigest()
        return _Statements({}, Definition("module", whole, frozenset(), 0), {}, ())
    definitions: dict[str, tuple[Definition, ...]] = {}
    imports: dict[str, tuple[str, ...]] = {}
    stars: list[str] = []
    effects: list[_Seen] = []
    order = _Order()
    line = 0
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # the docstring, or a text without effect
        if _is_for_scripts(statement):
            continue
        seen = _look(statement)
        for node in seen.imports:
            _note_import(node, imports, stars)
        names = _bound(statement, seen.calls)
        if names:
            for name in names:
                text = _digest([seen.text, *order.of(name, len(definitions.get(name, ())))])
                made = Definition(_kind(statement), text, seen.uses, statement.lineno, seen.whole)
                definitions[name] = (*definitions.get(name, ()), made)
            order.note(seen.uses)
        elif not isinstance(statement, ast.Import | ast.ImportFrom) or statement.names[0].name == ALL:
            effects.append(seen)
            order.note(seen.uses, effect=True)
            line = line or statement.lineno
        else:
            for bound, target in _targets(statement):
                digest = _digest([target, *order.of(bound, len(definitions.get(bound, ())))])
                kept = Definition("import", digest, frozenset(), statement.lineno)
                definitions[bound] = (*definitions.get(bound, ()), kept)
    uses: frozenset[str] = frozenset().union(*(seen.uses for seen in effects))
    digest = _digest(seen.text for seen in effects)
    passed: frozenset[str] = frozenset().union(*(seen.whole for seen in effects))
    return _Statements(definitions, Definition("module", digest, uses, line, passed), imports, tuple(stars))


class _Order:
    """Counts the statements of a source that mention a name, for statements that bind it again or later.

    Definitions are known by name and content, so that the order of most of them does not matter.
    """

    def __init__(self) -> None:
        self._effects: Counter[str] = Counter()
        self._all: Counter[str] = Counter()

    def note(self, uses: Iterable[str], effect: bool = False) -> None:
        """Note a statement with these names in it."""
        self._all.update(uses)
        if effect:
            self._effects.update(uses)

    def of(self, name: str, earlier: int) -> list[str]:
        """Return what tells the place of a statement that binds the name; nothing if its place does not matter.

        earlier: how many statements before it bind the name.
        """
        if earlier:
            return [f"{earlier} {self._all[name]}"]
        return [f"0 {self._effects[name]}"] if name in self._effects else []


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """Yield (bound name, module or member that it means); for ``from a import *`` ("*", "a")."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0], alias.name
        return
    base = "." * node.level + (node.module or "")
    joint = "" if base.endswith(".") else "."
    for alias in node.names:
        yield alias.asname or alias.name, base if alias.name == ALL else f"{base}{joint}{alias.name}"


def _note_import(node: ast.Import | ast.ImportFrom, imports: dict[str, tuple[str, ...]], stars: list[str]) -> None:
    for bound, target in _targets(node):
        if bound == ALL:
            stars.append(target)
        else:
            imports[bound] = (*imports.get(bound, ()), target)


class Reached(NamedTuple):
    """What is reached in the sources of a bundle."""

    definitions: list[tuple[str, str, Definition]]
    """(module, name or "" for the statements with effects and the module as such, the definition), sorted."""
    members: dict[str, ModuleSource]
    outside: frozenset[str]
    """Names of modules that the members import and that do not travel."""


def reached_from(bundle: Bundle, names: frozenset[str]) -> Reached:
    """Return what is reached from these names in the bundle's own module; `ALL` among them means every name."""
    members = {member.name: member for member in bundle.members}
    texts = {name: _parsed(member.source) for name, member in members.items()}
    found: dict[tuple[str, str], tuple[Definition, ...]] = {}
    waiting: list[tuple[str, str]] = [(bundle.name, name) for name in sorted(names)]
    for module, whole in texts.items():
        # Every module of the bundle is imported, and what its statements do then may change any other part.
        found[module, ""] = (whole.effects,)
        waiting += [(module, name) for name in sorted({*whole.effects.uses, "__getattr__"})]
        waiting += _passed_on(members[module], texts, whole.effects.whole)
        waiting += _computed(module, texts, whole.effects.uses)
    while waiting:
        module, name = waiting.pop()
        if module not in texts or (module, name) in found:
            continue
        text = texts[module]
        own = text.definitions.get(name, ()) if name != ALL else (_PRESENT,)
        found[module, name] = own
        uses = frozenset().union(*(each.uses for each in own)) if own else frozenset()
        if name == ALL:
            waiting += [(module, each) for each in text.definitions]
        waiting += _computed(module, texts, uses)
        if _imports_calls(text, name):
            waiting += [(each, ALL) for each in texts]
        waiting += [(module, each) for each in uses]
        waiting += _meant(members[module], texts, name, uses)
        for each in own:
            waiting += _passed_on(members[module], texts, each.whole)
    definitions = sorted(
        (module, name if name != ALL else "", each)
        for (module, name), several in found.items()
        for each in several
        if each.uses or each.line or each is _PRESENT
    )
    return Reached(definitions, members, frozenset(_outside(members)))


def _computed(module: str, texts: dict[str, _Statements], uses: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of what a code with these uses may reach under computed names."""
    if not _DYNAMIC.isdisjoint(uses):
        yield from ((module, each) for each in texts[module].definitions)
    if not _IMPORTS.isdisjoint(uses):
        yield from ((each, ALL) for each in texts)


def _imports_calls(text: _Statements, name: str) -> bool:
    """Return whether a name of a module is another one for a function that imports modules under names."""
    return any(target.rpartition(".")[2] in _IMPORTS for target in text.imports.get(name, ()))


def _meant(
    member: ModuleSource, texts: dict[str, _Statements], name: str, uses: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Yield (module, name) that a name or its uses mean in other modules of the bundle."""
    text = texts[member.name]
    wanted = {name, *uses}
    for bound in wanted & text.imports.keys():
        for target in text.imports[bound]:
            for full in resolve(member.name, member.is_package, [target]):
                if full in texts:
                    yield from ((full, each) for each in wanted)
                    if wanted & _DYNAMIC:
                        yield full, ALL
            base, _, last = target.rpartition(".")
            base = base or "." * (len(target) - len(target.lstrip(".")))
            for full in resolve(member.name, member.is_package, [base]) if base else ():
                if full in texts:
                    yield full, last
    for star in text.stars:
        for full in resolve(member.name, member.is_package, [star]):
            if full in texts and full != member.name:
                yield from ((full, each) for each in wanted)
                yield full, "__all__"


def _passed_on(member: ModuleSource, texts: dict[str, _Statements], whole: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield (module, `ALL`) of the modules that are passed on or kept under one of these names."""
    imports = texts[member.name].imports
    for bound in whole & imports.keys():
        for target in imports[bound]:
            for full in (next(resolve_one(member.name, member.is_package, target), ""), bound if "." in target else ""):
                if full in texts:
                    yield full, ALL


def _outside(members: dict[str, ModuleSource]) -> Iterator[str]:
    for member in members.values():
        for name in resolve(member.name, member.is_package, _mentioned(member.source)):
            if name not in members:
                yield name


@functools.lru_cache(maxsize=1024)
def _mentioned(source: bytes) -> frozenset[str]:
    return mentioned(source)
