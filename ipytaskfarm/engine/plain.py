"""The short path: compiles and runs code that is plain Python, without IPython's machinery.

``run_cell`` costs 150 µs, compile and exec 10 µs. The test for the short path must be exact: code takes it only if
IPython would run exactly the same. In a comparison with ``transform_cell`` on 68 hand-made cases and 1,443 statements
of the standard library, no case was misjudged.

IPython runs the following: code that does not compile (magics, ``!cmd``, ``name?``, top-level await, which only
compiling refuses and ``ast.parse`` accepts); lines that look like a pasted prompt; a single line that begins with the
name of a magic or of an autocall; and all code while the user has registered transformations or callbacks.

Code that differs from earlier code only in whole numbers is compiled without the compiler. Programs that submit tasks
in a loop write ``f"a = f({i})"``: each text is new, and the compiler takes as long as all else that an engine does for
such a task.  A *template* is the compiled code of a text in which other numbers of as many digits stood; their places
among its constants are known.

A number has a place only if the compiler has left it alone: it loads it once, as a constant of this code itself, and
it has not computed with it (``60 * 60``, ``-1``, ``if 0:``) nor put it into a tuple, a string or a function.  Whether
that is so does not depend on its value: two texts are compiled to find the places, and a third to check them.
"""

from __future__ import annotations

import ast
import dis
import re
import tokenize
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

from IPython.core.autocall import IPyAutocall
from IPython.core.displayhook import DisplayHook
from IPython.core.macro import Macro

from ..core.messages.payload import CellPlace, StringWork, Work
from ..serialization.function_parts import closure_of
from ..serialization.process_values import asked

WAYS: dict[str, frozenset[str]] = {
    "os": frozenset({"environ"}),
    "sys": frozenset({
        "path", "argv", "stdout", "stderr", "stdin", "__stdout__", "__stderr__", "__stdin__", "meta_path", "path_hooks",
        "modules", "excepthook", "displayhook", "breakpointhook", "unraisablehook", "dont_write_bytecode",
        "pycache_prefix", "tracebacklimit", "monitoring",
    }),
    "gc": frozenset({"callbacks", "disable", "enable", "set_debug", "set_threshold"}),
    "logging": frozenset({
        "root", "getLogger", "disable", "lastResort", "raiseExceptions", "config", "captureWarnings",
    }),
    "socket": frozenset({"socket", "setdefaulttimeout"}),
    "tempfile": frozenset({"tempdir"}),
    "threading": frozenset({"excepthook", "settrace", "setprofile", "stack_size"}),
    "tracemalloc": frozenset({"start"}),
    "warnings": frozenset({"filters", "showwarning", "formatwarning"}),
}  # fmt: skip
"""Module -> names in it through which code reaches state of the process. Not included are the watched functions of
``os``, ``signal``, ``locale`` …"""
NAMES = frozenset({
    "__builtins__", "__dict__", "__import__", "asyncio", "basicConfig", "builtins", "cpu_affinity", "decimal",
    "dictConfig", "eval", "exec", "filterwarnings", "get_ipython", "getcontext", "import_module", "nice",
    "resetwarnings", "set_asyncgen_hooks", "set_coroutine_origin_tracking_depth", "set_event_loop",
    "set_int_max_str_digits", "set_printoptions", "set_start_method", "setcontext", "setdefaulttimeout",
    "setdlopenflags", "seterr", "setprofile", "setrecursionlimit", "setswitchinterval", "settrace", "simplefilter",
    "vars",
})  # fmt: skip
"""Names that are sufficient by themselves."""


_MENTIONED = NAMES | WAYS.keys()


def reaches(code: types.CodeType) -> bool:
    """Return whether code may change state that belongs to the whole process: whether it mentions one of the names.

    Takes 0.1 µs for a line of code.

    Nothing reports an assignment to ``sys.stdout`` or ``decimal.getcontext().prec``. The user's own code that does so
    mentions the module or the function somewhere. Changes that libraries make by themselves are found by occasional
    examinations (see `baseline`).
    """
    names = code.co_names
    if not _MENTIONED.isdisjoint(names) and _names_reach(names):
        return True
    for each in code.co_consts:  # noqa: SIM110  # a generator would cost as much again
        if type(each) is types.CodeType and reaches(each):
            return True
    return False


def _names_reach(names: tuple[str, ...]) -> bool:
    return not NAMES.isdisjoint(names) or any(
        not ways.isdisjoint(names) for module, ways in WAYS.items() if module in names
    )


def function_reaches(function: Any) -> bool:
    """Return whether a function, or a user's function that it calls by name, mentions one of the names."""
    return any(map(_reaches_itself, _functions(function)))


def _functions(start: Any) -> Iterator[types.FunctionType]:
    """Yield the Python functions that can be reached by globals, cells and wrappers, each once."""
    waiting, seen = [start], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, types.MethodType):
            waiting.append(each.__func__)
        elif isinstance(each, types.FunctionType):
            yield each
            waiting.extend(_used(each))
        elif isinstance(each, type):
            waiting.extend(value for value in vars(each).values() if isinstance(value, types.FunctionType))
        elif hasattr(each, "func") and hasattr(each, "keywords"):  # a functools.partial
            waiting.append(each.func)


def _used(function: types.FunctionType) -> Iterator[Any]:
    if "__wrapped__" in vars(function):
        yield vars(function)["__wrapped__"]
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType | types.MethodType | type):
            yield value
    yield from (value for _, value in closure_of(function))


def _reaches_itself(function: types.FunctionType) -> bool:
    code = function.__code__
    if reaches(code):
        return True
    return any(_is_a_way(function.__globals__.get(name), code) for name in code.co_names)


def _is_a_way(value: Any, code: types.CodeType) -> bool:
    """Return whether a global is one of these modules or functions, whatever its name is here."""
    if isinstance(value, types.ModuleType):
        name = value.__name__
        return name in NAMES or not WAYS.get(name, frozenset()).isdisjoint(all_names(code))
    name = asked(value, "__name__")
    return isinstance(value, ContextVar) or (isinstance(name, str) and name in NAMES)


def all_names(code: types.CodeType) -> set[str]:
    """Return the names that the code, and code nested in it, mentions."""
    inner = (all_names(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*inner)


_NUMBERS = re.compile(r"(?<![\w.])(0|[1-9]\d{0,15})(?![\w.])")
_NUMBERS_MAX = 8
_CHARS_MAX = 1000
_TEMPLATES_MAX = 256
_LOAD_CONST = dis.opmap["LOAD_CONST"]

Compile: TypeAlias = Callable[[str], "Plain | None"]
Place: TypeAlias = tuple[int, int]
"""(0 for the body or 1 for the last expression, index among its constants)."""


class Plain(NamedTuple):
    """Compiled code: `body`, then `last`, an expression that is shown."""

    body: CodeType | None
    last: CodeType | None
    first_name: str
    """The first word of a single line, which may be the name of a magic."""
    reaches: bool
    """Whether the code may change state that belongs to the whole process."""


class Template:
    """Compiled code, and where the numbers of its text stand."""

    __slots__ = ("_body_constants", "_has_inner", "_last_constants", "_plain", "_slots")

    def __init__(self, plain: Plain, places: Sequence[Place]) -> None:
        self._plain = plain
        self._body_constants, self._last_constants = _constants(plain.body), _constants(plain.last)
        both = self._body_constants, self._last_constants
        self._has_inner = any(type(each) is CodeType for constants in both for each in constants)
        self._slots = [(both[part], index) for part, index in places]

    def filled(self, numbers: Sequence[str], filename: str) -> Plain:
        """Return the code with these numbers, of which none is there twice: equal constants are one object."""
        for (constants, index), number in zip(self._slots, numbers, strict=True):
            constants[index] = int(number)
        body, last, first_name, reaches = self._plain
        if body is not None:
            body = body.replace(co_consts=tuple(self._body_constants), co_filename=filename)
        if last is not None:
            last = last.replace(co_consts=tuple(self._last_constants), co_filename=filename)
        if self._has_inner:
            body, last = _named(body, filename), _named(last, filename)
        return Plain(body, last, first_name, reaches)


class Templates:
    """The templates of the texts that were compiled last.

    Args:
        usual: compiles a text with the compiler; None if it is no plain code.
        name_of: returns the name of a text's code in tracebacks.
    """

    def __init__(self, usual: Compile, name_of: Callable[[str], str]) -> None:
        self._usual = usual
        self._name_of = name_of
        self._known: dict[tuple[object, ...], Template | None] = {}
        """Text with the lengths of its numbers in their place -> its template; None if it can have none."""
        self._seen: set[tuple[object, ...]] = set()
        """Those that were seen once."""

    def clear(self) -> None:
        """Forget all templates: the compiler's settings have changed."""
        self._known.clear()
        self._seen.clear()

    def compile(self, code: str) -> tuple[Plain | None, bool]:
        """Return the compiled code, and whether that was made from a template."""
        if len(code) > _CHARS_MAX:
            return self._usual(code), False
        pieces: list[Any] = _NUMBERS.split(code)
        numbers = pieces[1::2]
        if len(numbers) != 1 and not 1 < len(numbers) == len(set(numbers)) <= _NUMBERS_MAX:
            return self._usual(code), False
        pieces[1::2] = map(len, numbers)
        key = tuple(pieces)
        template = self._known.get(key)
        if template is not None:
            return template.filled(numbers, self._name_of(code)), True
        plain = self._usual(code)
        if key in self._seen:
            self._seen.discard(key)
            self._known[key] = None if plain is None else self._template(pieces, numbers, plain, self._name_of(code))
        elif key not in self._known:
            if len(self._known) + len(self._seen) >= _TEMPLATES_MAX:
                self.clear()
            self._seen.add(key)
        return plain, False

    def _template(
        self, pieces: Sequence[object], numbers: Sequence[str], plain: Plain, filename: str
    ) -> Template | None:
        """Return the template of a text; `plain` is its own compiled code.  None: some number has no place."""
        found: Plain | None = None
        places: list[list[Place | None]] = []
        for odd in (0, 1):
            others = _other_numbers(numbers, odd)
            text = [*pieces]
            if len(others) < len(numbers):
                return None
            text[1::2] = others
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # a text that is warned of is compiled each time, for its warning
                    found = self._usual("".join(map(str, text)))
            except Exception:
                found = None
            if found is None:
                return None
            places.append([_place(found, int(number)) for number in others])
        sure = [place for place in places[0] if place is not None]
        if found is None or places[0] != places[1] or len(set(sure)) != len(numbers):
            return None
        template = Template(found, sure)
        made = template.filled(numbers, filename)
        same = _is_same(made.body, plain.body) and _is_same(made.last, plain.last) and made[2:] == plain[2:]
        return template if same else None


def _named(part: CodeType | None, filename: str) -> CodeType | None:
    """Return code whose functions have this filename."""
    if part is None:
        return None
    constants = tuple([_named(each, filename) if type(each) is CodeType else each for each in part.co_consts])
    return part.replace(co_consts=constants, co_filename=filename)


def _constants(part: CodeType | None) -> list[object]:
    return [*part.co_consts] if part is not None else []


def _other_numbers(numbers: Sequence[str], odd: int) -> list[str]:
    """Return different numbers of as many digits each, even or odd ones.  There are fewer if digits do not suffice."""
    chosen: list[str] = []
    for number in numbers:
        start, end = 2 * 10 ** (len(number) - 1) + odd, 10 ** len(number)
        chosen += next(([str(n)] for n in range(start, end, 2) if str(n) not in chosen), [])
    return chosen


def _place(plain: Plain, number: int) -> Place | None:
    """Return where a number is loaded as a constant; None if it is not, or not exactly once."""
    found = []
    for at, part in enumerate(plain[:2]):
        for index, constant in enumerate(part.co_consts if part is not None else ()):
            if type(constant) is int and constant == number and part is not None and _loads(part, index) == 1:
                found.append((at, index))
    return found[0] if len(found) == 1 else None


def _loads(code: CodeType, index: int) -> int:
    return sum(step.opcode == _LOAD_CONST and step.arg == index for step in dis.get_instructions(code))


def _is_same(found: CodeType | None, expected: CodeType | None) -> bool:
    if found is None or expected is None:
        return found is expected
    inner = [[each for each in code.co_consts if type(each) is CodeType] for code in (found, expected)]
    positions = list(found.co_positions()) == list(expected.co_positions())
    is_same = found == expected and found.co_filename == expected.co_filename and positions
    return is_same and all(map(_is_same, *inner))


def filename_of(code: str, cell: CellPlace | None = None) -> str:
    """Return the name of a task's code in tracebacks.

    cell: the cell in which the user typed the code, of which the name is used then.

    Nothing is put into linecache for it, which never shrinks: `failures` looks the lines up in the code of the failed
    run. The hash distinguishes functions of earlier tasks, of which the lines are not known any more.
    """
    return f"<task {hash(code) & 0xFFFF:04x}>" if cell is None else cell.file


def source_of(work: Work | None) -> tuple[str, str]:
    """Return (name of the run's own code in tracebacks, its source from line 1 on); two empty texts for a function."""
    if not isinstance(work, StringWork):
        return "", ""
    return filename_of(work.code, work.cell), work.code if work.cell is None else work.cell.placed(work.code)


CACHE_ENTRIES = 256
CACHE_CODE_CHARS = 64 * 1024

_BEGINNING = re.compile(r"\s*([^\W\d]\w*)([ \t]*=(?!=))?")
"""The first name of the code, and whether it is assigned to."""
_PROMPT = re.compile(r"^\s*(?:In *\[|\.\.\.)", re.MULTILINE)


class PlainTest:
    """Decides whether code is plain Python for this shell, and compiles it if so."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._compiler = shell.compile
        self._names: dict[str, Any] = shell.user_ns
        self._line_magics = shell.magics_manager.magics["line"]
        self._cache: dict[str | tuple[str, CellPlace], Plain] = {}
        self._templates = Templates(self._compile, filename_of)
        self._flags = self._compiler.flags
        self._latest = ""
        """The text that was compiled last from a template."""
        self._watch_lists()
        # An assignment replaces the list objects. Reading a trait costs as much as the rest of the test.
        shell.observe(lambda change: self._watch_lists(), ["ast_transformers", "input_transformers_post"])
        self._usual_traits = self._traits()
        shell.observe(lambda change: self._look_at_traits(), ["ast_node_interactivity", "autocall"])
        self._traits_changed = False

    def compile(self, code: str, cell: CellPlace | None = None) -> Plain | None:
        """Return the compiled code; None if IPython must run it.  cell: see `filename_of`."""
        if self._traits_changed or self._shell.custom_exceptions or self._lengths() != self._usual_lengths:
            return None
        key = code if cell is None else (code, cell)
        plain = self._cache.get(key)
        if plain is None:
            plain, from_template = self._from_template(code) if cell is None else (self._compile(code, cell), False)
            if plain is None:
                return None
            if from_template and code != self._latest:
                self._latest = code  # if the same text comes again, it is kept
            elif len(code) <= CACHE_CODE_CHARS:
                if len(self._cache) >= CACHE_ENTRIES:
                    # Clear all at once: code that is used again is soon back, and this costs least for code that never
                    # comes again.
                    self._cache.clear()
                self._cache[key] = plain
        if plain.first_name and self._means_something(plain.first_name):
            return None
        return plain

    def _from_template(self, code: str) -> tuple[Plain | None, bool]:
        """Return the compiled code, and whether that was made from a template."""
        if self._compiler.flags != self._flags:
            self._flags = self._compiler.flags
            self._templates.clear()
        return self._templates.compile(code)

    def _watch_lists(self) -> None:
        """Record the lists with which a user can change the meaning of code."""
        shell = self._shell
        manager, callbacks = shell.input_transformer_manager, shell.events.callbacks
        self._lists = (
            shell.ast_transformers,
            shell.input_transformers_post,
            manager.cleanup_transforms,
            manager.line_transforms,
            manager.token_transformers,
            callbacks["pre_execute"],
            callbacks["pre_run_cell"],
            callbacks["post_run_cell"],
        )
        if not hasattr(self, "_usual_lengths"):
            self._usual_lengths = self._lengths()

    def _lengths(self) -> list[int]:
        return [*map(len, self._lists)]

    def _traits(self) -> tuple[Any, ...]:
        return self._shell.ast_node_interactivity, self._shell.autocall

    def _look_at_traits(self) -> None:
        self._traits_changed = self._traits() != self._usual_traits

    def _means_something(self, name: str) -> bool:
        value = self._names.get(name)
        if value is not None:
            return isinstance(value, IPyAutocall | Macro)
        return name in self._line_magics

    def _compile(self, code: str, cell: CellPlace | None = None) -> Plain | None:
        if ("In" in code or "..." in code) and _PROMPT.search(code):
            return None
        if "__future__" in code:
            return None  # IPython's compiler remembers it for the code that follows
        single = True
        if "\n" in code or "\r" in code:
            stripped = code.strip()
            single = "\n" not in stripped and "\r" not in stripped
        name, assigns = "", False
        if single and (beginning := _BEGINNING.match(code)):
            name, assigns = beginning[1], beginning[2] is not None and ";" not in code
        flags = self._compiler.flags
        filename = filename_of(code, cell)
        source = code if cell is None else cell.placed(code)
        try:
            if assigns:
                # The most frequent task has no value to show: skip the syntax tree.
                body = compile(source, filename, "exec", flags, True)
                return Plain(body, None, name, reaches(body))
            body, last = _parts(source, filename, flags)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            return None  # IPython runs it, or explains the error
        return Plain(body, last, name, any(each is not None and reaches(each) for each in (body, last)))


def _parts(code: str, name: str, flags: int) -> tuple[CodeType | None, CodeType | None]:
    tree = compile(code, name, "exec", flags | ast.PyCF_ONLY_AST, True)
    assert isinstance(tree, ast.Module)
    statements = tree.body
    if not statements:
        return None, None
    final = statements[-1]
    if not isinstance(final, ast.Expr) or (";" in code and is_quiet(code)):
        return compile(tree, name, "exec", flags, True), None
    last = compile(ast.Expression(final.value), name, "eval", flags, True)
    if len(statements) == 1:
        return None, last
    del statements[-1]
    return compile(tree, name, "exec", flags, True), last


def is_quiet(code: str) -> bool:
    """Return whether the code ends in a semicolon, so that its value is not shown."""
    try:
        return bool(DisplayHook.semicolon_at_end_of_expression(code))
    except (tokenize.TokenError, SyntaxError):
        return False
