"""Tells which settings of libraries, and which variables, this session has changed and tasks do not have.

Only settings on which values depend: how a library prints is left alone, but for matplotlib, whose figures are results.
"""

from __future__ import annotations

import decimal
import dis
import functools
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..system import process
from .function_imports import names_imported
from .global_names import mentioned, nested_codes
from .module_bundles import bundle_of, is_sent


def changed_settings(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (library, sentence) if a global belongs to a library with settings that this session has changed."""
    owner = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    if not isinstance(owner, str):
        owner = str(type(value).__module__)
    top = owner.partition(".")[0]
    find = _FINDERS.get(top)
    if find is not None and top in sys.modules:
        try:
            changed = find()
        except Exception:  # another version of the library keeps them elsewhere
            return
        if changed:
            what, remedy = ", ".join(changed[:3]) + (" …" if len(changed) > 3 else ""), _REMEDIES[top]
            yield top, f"this session has changed settings of {top} ({what}) that tasks do not have: {remedy}"


def changed_numbers(function: types.FunctionType, value: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, sentence) if a value belongs to decimal or numpy, and this session has changed how they compute."""
    kind: Any = type(value)
    if value is decimal or value is decimal.Decimal or kind is decimal.Decimal:
        here, usual = decimal.getcontext(), decimal.DefaultContext
        if (here.prec, here.rounding) != (usual.prec, usual.rounding) and not sets_itself(function, NUMBERS):
            text = (
                f"this session's decimal context (prec={here.prec}, {here.rounding}) is not that of tasks, which begin "
            )
            text += f"with prec={usual.prec}, {usual.rounding}: set it in the function, or for all with mec.execute(…)"
            yield "decimal", text
    elif kind is types.ModuleType and value.__name__ == "numpy":
        raising = [name for name, action in value.geterr().items() if action in ("raise", "call")]
        if raising and not sets_itself(function, NUMBERS):
            text = (
                f"numpy raises here for {', '.join(raising)} (np.seterr), but not in tasks, which begin with numpy's "
            )
            text += "settings: use np.errstate in the function, or np.seterr for all with mec.execute(…)"
            yield "numpy", text


def changed_variables(function: types.FunctionType) -> Iterator[tuple[str, str]]:
    """Yield (variable, sentence) for variables that the function reads, and that this session has set."""
    names = mentioned(function.__code__)
    if names.isdisjoint(("environ", "getenv", "expandvars", *_SHELLS)) or _may_set_variables(function):
        return
    changed = _changed_names()
    consts = _texts_of(function)
    reads = not names.isdisjoint(("environ", "getenv"))
    found = sorted(
        name for name in changed if (reads and name in consts) or any(_expands(text, name) for text in consts)
    )
    if found and not sets_itself(function, _VARIABLES):
        for name in found:
            yield (
                name,
                f"{function.__qualname__} reads the variable {name}, which was set in this session: {_WHOSE_VARIABLES}",
            )


_SHELLS = ("run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput", "system", "popen")
"""Functions of ``subprocess`` and ``os`` whose text a shell may read."""
_WHOSE_VARIABLES = (
    "tasks have the variables of the shell in which the farm was started. Pass the value as an argument, or set it for "
    "all with mec.execute(…)"
)


def computed_variables(function: types.FunctionType, sources: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield (variables, sentence) if the function reads variables under computed names, and the program sets some.

    sources: the program's own, which name what it sets: libraries set variables too when they are imported."""
    names = mentioned(function.__code__)
    if names.isdisjoint(("environ", "getenv", "expandvars")) or _may_set_variables(function):
        return
    steps = (step for code in nested_codes(function.__code__) for step in dis.get_instructions(code))
    is_computed = not names.isdisjoint(("items", "keys", "values", "copy")) or any(map(_joins, steps))
    if not is_computed and any(map(_NAME.fullmatch, _texts_of(function))):
        return  # it names what it reads
    changed = _changed_names()
    if not changed:
        return
    texts = list(sources)
    found = sorted(name for name in changed if any(name.encode() in text for text in texts))
    if found and not sets_itself(function, _VARIABLES):
        named = ", ".join(found[:3]) + (" …" if len(found) > 3 else "")
        yield (
            f"computed {named}",
            f"{function.__qualname__} reads variables under names that it computes, and this session has set {named}: "
            f"{_WHOSE_VARIABLES}",
        )


def _may_set_variables(function: types.FunctionType) -> bool:
    return any(_STORE_SUBSCR in code.co_code[::2] for code in nested_codes(function.__code__))


def _texts_of(function: types.FunctionType) -> set[str]:
    codes = nested_codes(function.__code__)
    return {each for code in codes for each in code.co_consts if isinstance(each, str)}


def _joins(step: dis.Instruction) -> bool:
    """Return whether an instruction may make a text of parts."""
    return step.opname in _JOINS and step.argrepr != "[]"  # since Python 3.14 an item is a binary operation too


_JOINS = frozenset(("BINARY_OP", "BUILD_STRING", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC"))
_NAME = re.compile(r"[A-Z_][A-Z0-9_]{2,}")


def _changed_names() -> list[str]:
    begun = process.farm_began_with or _initial_variables()
    return [name for name, value in os.environ.items() if value != begun.get(name)] if begun else []


def _expands(text: str, name: str) -> bool:
    """Return whether a shell, or ``os.path.expandvars``, would put the variable into the text."""
    at = text.find(f"${name}")
    if at >= 0:
        behind = text[at + 1 + len(name) :]
        return not (behind[:1].isalnum() or behind[:1] == "_")
    return f"${{{name}}}" in text


def sets_itself(function: types.FunctionType, pattern: re.Pattern[bytes]) -> bool:
    """Return whether the source of a by-value module that the function uses has the pattern, with which it sets
    something when it is imported: engines import it, as this session did."""
    names = {function.__module__, *names_imported(function, {})}
    for name in mentioned(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            names.add(value.__name__)
        else:
            names.add((value if isinstance(value, types.FunctionType | type) else type(value)).__module__)
    own = (name for name in names if isinstance(name, str) and is_sent(name))
    sources = (member.source for name in own for member in bundle_of(name).members)
    return any(map(pattern.search, sources))


_VARIABLES = re.compile(
    rb"\benviron\s*(\[[^]\n]*\]\s*=(?!=)|\|=|\.\s*(update|setdefault)\b)|\b(putenv|load_dotenv|read_env)\b"
)
FILTERS = re.compile(rb"\b(filterwarnings|simplefilter)\b")
LOCALE = re.compile(rb"\bsetlocale\b")
LOGGING = re.compile(rb"\b(addHandler|basicConfig|dictConfig|fileConfig|setLevel)\b")
NUMBERS = re.compile(rb"\b(DefaultContext|getcontext|setcontext|seterr)\b")
_STORE_SUBSCR = dis.opmap["STORE_SUBSCR"]


@functools.cache
def _initial_variables() -> dict[str, str]:
    """Return the variables with which this process began; {} if the system does not tell."""
    if "setproctitle" in sys.modules:  # it writes the title over them
        return {}
    try:
        text = os.fsdecode(Path("/proc/self/environ").read_bytes())
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in text.split("\0") if "=" in part)


def _of_pandas() -> list[str]:
    config: Any = sys.modules["pandas._config.config"]
    found = []
    for name, option in config._registered_options.items():
        if name.startswith(("compute.", "mode.", "future.", "display.date_")) and name not in _DECIDED_LATER:
            # get_option would warn of each option that is deprecated
            value = functools.reduce(lambda inner, part: inner[part], name.split("."), config._global_config)
            if value != option.defval:
                found.append(f"{name}={value!r}")
    return found


_DECIDED_LATER = frozenset({"mode.copy_on_write", "mode.sim_interactive"})
"""Options whose defaults pandas takes from the environment, as it does on engines, or that are for its own tests."""


def _of_sklearn() -> list[str]:
    config: Any = sys.modules["sklearn._config"]
    usual: dict[str, Any] = config._global_config
    return [f"{name}={value!r}" for name, value in config.get_config().items() if value != usual.get(name)]


def _of_matplotlib() -> list[str]:
    library: Any = sys.modules["matplotlib"]
    usual = library.rcParamsOrig
    return [
        f"{name}={value!r}"
        for name, value in dict.items(library.rcParams)
        if name not in _OF_BACKENDS and name in usual and dict.__getitem__(usual, name) != value
    ]


_OF_BACKENDS = frozenset({"backend", "backend_fallback", "interactive", "toolbar", "figure.raise_window"})


def _of_torch() -> list[str]:
    usual = str(sys.modules["torch"].get_default_dtype())
    return [] if usual == "torch.float32" else [f"default dtype {usual}"]


_FINDERS: dict[str, Callable[[], list[str]]] = {
    "pandas": _of_pandas,
    "sklearn": _of_sklearn,
    "matplotlib": _of_matplotlib,
    "torch": _of_torch,
}
_REMEDIES = {
    "pandas": "use pd.option_context in the function, or pd.set_option for all with mec.execute(…)",
    "sklearn": "use sklearn.config_context in the function, or sklearn.set_config for all with mec.execute(…)",
    "matplotlib": "use plt.rc_context or plt.style.context in the function, or plt.rc for all with mec.execute(…)",
    "torch": "set it in the function, or for all with mec.execute(…)",
}
