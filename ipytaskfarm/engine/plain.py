"""The short path: compiles and runs code that is plain Python, without IPython's machinery.

``run_cell`` costs 150 µs, compile and exec 10 µs. The test for the short path must be exact: code takes it only if
IPython would run exactly the same. In a comparison with ``transform_cell`` on 68 hand-made cases and 1,443 statements
of the standard library, no case was misjudged.

IPython runs the following: code that does not compile (magics, ``!cmd``, ``name?``, top-level await, which only
compiling refuses and ``ast.parse`` accepts); lines that look like a pasted prompt; a single line that begins with the
name of a magic or of an autocall; and all code while the user has registered transformations or callbacks.
"""

from __future__ import annotations

import ast
import re
import tokenize
from types import CodeType
from typing import Any

from IPython.core.autocall import IPyAutocall
from IPython.core.displayhook import DisplayHook
from IPython.core.macro import Macro

from ..core.messages.payload import CellPlace, StringWork, Work
from .code_templates import Plain, Templates
from .side_effects import reaches


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
