"""Finds where code asks for time, chance, the environment, or modules under computed names: a cached result cannot
depend on them.

The search reads bytecode and knows the usual names of the standard library and of numpy.  It is for a warning: what it
does not find is not warned of.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator

from .global_names import nested_codes
from .process_values import ProcessValue, asked

TIME, CHANCE, ENVIRONMENT = "the time", "chance", "the environment"
MODULES = "modules under computed names"

_EXACT = {
    **dict.fromkeys(
        [
            "time.time", "time.time_ns", "time.monotonic", "time.perf_counter", "time.localtime", "time.gmtime",
            "time.ctime", "time.strftime", "datetime.datetime.now", "datetime.datetime.utcnow",
            "datetime.datetime.today", "datetime.date.today",
        ],
        TIME,
    ),
    **dict.fromkeys(["uuid.uuid1", "uuid.uuid4", "os.urandom"], CHANCE),
    **dict.fromkeys(
        [
            "os.environ", "os.getenv", "os.getcwd", "os.getpid", "os.getlogin", "socket.gethostname",
            "platform.node", "getpass.getuser", "pathlib.Path.cwd", "pathlib.Path.home",
        ],
        ENVIRONMENT,
    ),
}  # fmt: skip
_PREFIXES = {"random.": CHANCE, "numpy.random.": CHANCE, "secrets.": CHANCE}
_IMPORTS = {"importlib.import_module", "builtins.__import__", "runpy.run_module", "pkgutil.resolve_name"}
"""These ask for a module that is in no key, unless its name is a constant or a global, which count."""
_UNSEEDED = {"random.Random", "numpy.random.default_rng", "numpy.random.RandomState", "numpy.random.SeedSequence"}
"""These ask for chance only if they are called without arguments."""
_HARMLESS = {"random.seed", "numpy.random.seed", "numpy.random.Generator", "numpy.random.PCG64"}


def outside_inputs(
    code: types.CodeType, named: Callable[[str], str], is_text: Callable[[str], bool] = bool
) -> list[str]:
    """Return what the code, or code nested in it, asks for: ["the time (time.time)"].

    Args:
        code: the code of a function.
        named: returns the full name of what a global or free name means ("np" -> "numpy"), or "".
        is_text: returns whether a global or free name means a text, or a container, such as of texts.
    """
    found: dict[str, None] = {}
    seeds = False
    for each in nested_codes(code):
        for name, step in dotted_names(each, named):
            seeds = seeds or name in ("random.seed", "numpy.random.seed")
            what = _asked(name, step, is_text)
            if what:
                found[f"{what} ({name})"] = None
    # The global generators are reproducible after a seed.
    return [text for text in found if not (seeds and text.startswith(CHANCE))]


def _asked(name: str, following: dis.Instruction | None, is_text: Callable[[str], bool]) -> str:
    """Return what a name asks for; `following` is the instruction behind it."""
    if name in _UNSEEDED:
        return CHANCE if following is not None and following.opname == "CALL" and following.arg == 0 else ""
    if name in _IMPORTS:
        if following is None or following.opname in _NOT_CALLED:
            return ""
        return "" if following.opname in _NAMES and is_text(str(following.argval)) else MODULES
    if name in _HARMLESS:
        return ""
    if name.startswith("os.environ."):
        return ENVIRONMENT
    exact = _EXACT.get(name)
    if exact is not None:
        return exact
    return next((what for prefix, what in _PREFIXES.items() if name.startswith(prefix)), "")


_NAMES = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"})
_NOT_CALLED = frozenset({"LOAD_CONST", "STORE_FAST", "STORE_DEREF", "STORE_NAME", "RETURN_VALUE", "POP_TOP"})
"""Instructions behind an import function that is called with a constant, or not called here."""
_LOCALS = frozenset({"LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_SKIPPED = frozenset({"CACHE", "PUSH_NULL", "PRECALL", "EXTENDED_ARG", "NOP", "NOT_TAKEN"})


def dotted_names(code: types.CodeType, named: Callable[[str], str]) -> Iterator[tuple[str, dis.Instruction | None]]:
    """Yield (full dotted name, the instruction behind it) of what the code looks up."""
    local: dict[str, str] = {}
    name = ""
    last_import = ""
    for step in dis.get_instructions(code):
        op = step.opname
        if op in _SKIPPED:
            continue
        if op in _ATTRIBUTES and name:
            name = f"{name}.{step.argval}"
            continue
        if name:
            yield name, step
            name = ""
        if op in _NAMES:
            name = named(str(step.argval))
        elif op in _LOCALS:
            name = local.get(str(step.argval), "")
        elif op == "IMPORT_NAME":
            last_import = str(step.argval)
        elif op == "IMPORT_FROM":
            local_name = f"{last_import}.{step.argval}"
            local["\0from"] = local_name
        elif op.startswith("STORE_FAST") and last_import:
            local[str(step.argval)] = local.pop("\0from", last_import)
        elif op == "POP_TOP":
            last_import = ""
    if name:
        yield name, None


def full_name(value: object) -> str:
    """Return the dotted name under which a library has this object; "" for any other object."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, ProcessValue):
        return value.full_name
    owner = asked(value, "__self__", None)
    name = asked(value, "__qualname__", "")
    if isinstance(owner, types.ModuleType):
        return f"{owner.__name__}.{asked(value, '__name__', name)}"
    if owner is not None and type(owner).__module__ in ("random", "numpy.random.mtrand"):
        module = "random" if type(owner).__module__ == "random" else "numpy.random"
        return f"{module}.{asked(value, '__name__', name)}" if owner in _global_generators() else ""
    if type(value).__module__ == "os" and type(value).__name__ == "_Environ":
        return "os.environ"
    module_name = asked(value, "__module__", None)
    if isinstance(module_name, str) and isinstance(name, str) and name and not isinstance(value, staticmethod):
        return f"{module_name}.{name}" if module_name != "__main__" else ""
    return ""


@functools.cache
def _global_generators() -> tuple[object, ...]:
    import random

    return (getattr(random.random, "__self__", None), *_of_numpy())


def _of_numpy() -> tuple[object, ...]:
    import sys

    module = sys.modules.get("numpy.random.mtrand")
    return (getattr(module, "_rand", None),) if module is not None else ()
