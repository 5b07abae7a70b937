"""Python 2 in code for the engines: the remedy for what fails, and a warning of what computes something else.

Scripts for IPython 0.10 hand code to the engines as text, which no converter of programs has read: ``print a``,
``xrange``, ``n / 2``.  What raises an error on the engine gets a note with the Python 3 form (`add_remedy`).  What runs
and means something else is worse; a line on standard error names it (`tell_of_code`), but only in programs with names
of IPython 0.10, because ``1 / 3`` is a fraction on purpose in any other.
"""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import functools
import linecache
import re
import sys
from collections.abc import Mapping
from typing import Any

from ..core.text import shown
from ..system.user_code import depth_of_user, tell_user

_METHODS = {
    "__nonzero__": "__bool__", "__cmp__": "__eq__ and __lt__", "__div__": "__truediv__", "__idiv__": "__itruediv__",
    "__rdiv__": "__rtruediv__", "__getslice__": "__getitem__", "__unicode__": "__str__", "__long__": "__int__",
    "__metaclass__": "class A(metaclass=M)",
}  # fmt: skip
_TOLD_MAX = 5
"""A loop makes thousands of texts that divide; a few lines tell their author all."""
_PACKAGE = __name__.partition(".")[0]
_PAGE = "docs/migrating.md, Python 2 in code"

# --------------------------------------------------------------------------------------------------
# Errors

_SYNTAX = (
    (r"Missing parentheses in call to 'print'", r"", "print is a function: print(a)"),
    (r"Missing parentheses in call to 'exec'", r"", "exec is a function: exec(code), exec(code, namespace)"),
    (r"multiple exception types", r"", "an exception gets its name by `as`: except ValueError as error:"),
    (r"", r"^\s*raise\s+[\w.]+\s*,", "an exception gets its text in parentheses: raise ValueError('text')"),
    (r"leading zeros", r"", "octal numbers begin with 0o: 0o777"),
    (r"invalid (decimal|hexadecimal) literal", r"\b\d[\da-fA-FxX]*[lL]\b", "whole numbers of any size have no L: 10"),
    (r"", r"<>", "unequal is written !="),
    (r"", r"`[^`]+`", "backticks are repr(x)"),
    (r"", r"\bur['\"]", "text is Unicode: r'…' in place of ur'…'"),
    (r"parameters cannot be parenthesized|invalid syntax", r"\b(lambda\s*|def\s+\w+\s*\([^)]*)\(\w+\s*,",
     "a parameter is one name: unpack the tuple in the function"),
    (r"inconsistent use of tabs", r"", "a block is indented by tabs or by spaces, not by both"),
)  # fmt: skip
"""(pattern of the message, pattern of the line, the Python 3 form)"""

_NAMES = {
    "xrange": "range", "unicode": "str", "basestring": "str", "long": "int", "unichr": "chr", "raw_input": "input",
    "reduce": "functools.reduce", "reload": "importlib.reload", "intern": "sys.intern", "file": "open",
    "execfile": "exec(open(path).read())", "cmp": "(a > b) - (a < b)", "apply": "f(*args)", "buffer": "memoryview",
    "StandardError": "Exception", "coerce": "float(a), float(b)", "izip": "zip", "imap": "map", "ifilter": "filter",
}  # fmt: skip
_ATTRIBUTES = {
    "has_key": "key in d", "iteritems": "d.items()", "iterkeys": "d.keys()", "itervalues": "d.values()",
    "viewitems": "d.items()", "viewkeys": "d.keys()", "viewvalues": "d.values()", "func_name": "f.__name__",
    "func_code": "f.__code__", "func_defaults": "f.__defaults__", "im_func": "m.__func__", "im_self": "m.__self__",
}  # fmt: skip
"""Attribute of dicts and functions -> the Python 3 form"""
_OF_MODULES = {
    "base64.decodestring": "base64.decodebytes", "base64.encodestring": "base64.encodebytes",
    "inspect.getargspec": "inspect.getfullargspec", "itertools.ifilter": "filter", "itertools.imap": "map",
    "itertools.izip": "zip", "itertools.izip_longest": "itertools.zip_longest", "operator.div": "operator.floordiv",
    "operator.isCallable": "callable(f)", "operator.sequenceIncludes": "operator.contains", "os.errno": "import errno",
    "os.getcwdu": "os.getcwd()", "os.popen2": "subprocess.Popen", "os.popen3": "subprocess.Popen",
    "string.atof": "float(s)", "string.atoi": "int(s)", "string.joinfields": "' '.join(words)",
    "string.letters": "string.ascii_letters", "string.lowercase": "string.ascii_lowercase",
    "string.maketrans": "str.maketrans", "string.splitfields": "s.split()",
    "string.uppercase": "string.ascii_uppercase", "sys.exc_clear": "nothing", "sys.exc_type": "sys.exc_info()",
    "sys.maxint": "sys.maxsize", "sys.setdefaultencoding": "nothing: text is Unicode", "time.clock":
    "time.perf_counter()", "types.BooleanType": "bool", "types.ClassType": "type", "types.DictType": "dict",
    "types.FloatType": "float", "types.IntType": "int", "types.ListType": "list", "types.LongType": "int",
    "types.StringType": "str", "types.StringTypes": "str", "types.TupleType": "tuple", "types.UnicodeType": "str",
    "urllib.quote": "urllib.parse.quote", "urllib.unquote": "urllib.parse.unquote",
    "urllib.urlencode": "urllib.parse.urlencode", "urllib.urlopen": "urllib.request.urlopen",
    "urllib.urlretrieve": "urllib.request.urlretrieve",
}  # fmt: skip
"""Name in a module -> the Python 3 form.  Modules of users may have any names."""
_OF_STRING = ("join", "split", "replace", "strip", "lower", "upper", "find", "count", "zfill", "rjust", "ljust")
_MODULES = {
    "sets": "the builtin set", "cPickle": "pickle", "StringIO": "io.StringIO", "cStringIO": "io.StringIO",
    "urllib2": "urllib.request", "urlparse": "urllib.parse", "Queue": "queue", "ConfigParser": "configparser",
    "commands": "subprocess", "md5": "hashlib.md5", "sha": "hashlib.sha1", "exceptions": "the builtins",
    "thread": "_thread", "dummy_thread": "_thread", "copy_reg": "copyreg", "HTMLParser": "html.parser",
    "httplib": "http.client", "htmlentitydefs": "html.entities", "sgmllib": "html.parser", "Tkinter": "tkinter",
    "__builtin__": "builtins", "anydbm": "dbm", "new": "types", "popen2": "subprocess", "xmlrpclib": "xmlrpc.client",
    "Numeric": "numpy", "numarray": "numpy", "UserDict": "collections.UserDict", "SocketServer": "socketserver",
}  # fmt: skip
_NO_LISTS = ("map", "filter", "zip", "range", "dict_keys", "dict_values", "dict_items")
_LAZY = re.compile(r"\b(?:'|\")?(map|filter|zip|dict_keys|dict_values|dict_items|range)(?:'|\")?(?: object)?\b")

_FRACTION = re.compile(
    r"'float' object cannot be interpreted as an integer|indices must be integers.*float|slice indices must be "
    r"integers|non-int of type 'float'|single integer, got '[\d.]+'"
)
_NO_BYTES = re.compile(
    r"can't concat str to bytes|can only concatenate str \(not \"bytes\"\)|Strings must be encoded before hashing"
    r"|arg must be bytes .*not str"
)


def _of_syntax(error: SyntaxError) -> str:
    line = (error.text or "").rstrip()
    for message, code, form in _SYNTAX:
        if re.search(message, error.msg or "") and re.search(code, line):
            return form
    return ""


def _of_attribute(text: str) -> str:
    found = re.search(r"(?:(type object|module) )?'([\w.]+)' (?:object )?has no attribute '(\w+)'", text)
    if found is None:
        return ""
    kind, owner, name = found.groups()
    if kind == "module":
        if owner == "string" and name in _OF_STRING:
            return f"a method of the string: s.{name}(…)"
        whole = f"{owner}.{name}"
        if owner == "collections" and hasattr(collections.abc, name):
            return f"{whole} is collections.abc.{name}"
        return f"{whole} is {_OF_MODULES[whole]}" if whole in _OF_MODULES else ""
    if name == "next":
        return "iterator.next() is next(iterator)"
    if owner in _NO_LISTS and hasattr(list, name):
        what = owner.replace("dict_", "dict.")
        return f"{what}() gives no list: list({what}(…))"
    if owner == "str" and name == "decode":
        return "text is Unicode already: only bytes have decode"
    return f".{name} is {_ATTRIBUTES[name]}" if name in _ATTRIBUTES else ""


def _of_type(text: str) -> str:
    if "exceptions must derive from BaseException" in text:
        return "an exception is an object, not a string: raise Exception('text')"
    if re.search(
        r"'cmp' is an invalid keyword argument|(takes no positional arguments|^sorted expected 1 argument)", text
    ):
        return "an order is made of keys: sort(key=functools.cmp_to_key(f))"
    if "for >>: 'builtin_function_or_method'" in text:
        return "print >>file, a is print(a, file=file)"
    lazy = _LAZY.search(text)
    if lazy and re.search(
        r"not subscriptable|has no len|concatenate|operand type|item assignment|not reversible", text
    ):
        what = lazy[1].replace("dict_", "dict.")
        return f"{what}() gives no list: list({what}(…))"
    if "not supported between instances of" in text and re.search(
        r"NoneType|'str' and '(int|float)'|'(int|float)' and 'str'", text
    ):
        return "None and text cannot be compared with numbers"
    if _FRACTION.search(text):
        return "the quotient of whole numbers is a fraction: // divides as in Python 2"
    if _NO_BYTES.search(text):
        return "text and bytes differ: text.encode() makes bytes, data.decode() makes text"
    if "iter() returned non-iterator" in text:
        return "the method of iterators is __next__, not next"
    if "must be str, not bytes" in text or "a bytes-like object is required, not 'str'" in text:
        return "files of text take str, files of bytes ('wb') and sockets bytes"
    return ""


def remedy(error: BaseException) -> str:
    """Return the Python 3 form of what an error complains of; "" if it is not about Python 2."""
    try:
        return _remedy(error, str(error))
    except Exception:  # the exception's class may do anything when it is asked for its text
        return ""


def _remedy(error: BaseException, text: str) -> str:
    form = ""
    if isinstance(error, SyntaxError):
        form = _of_syntax(error)
    elif isinstance(error, NameError):
        found = re.match(r"name '(\w+)' is not defined", text)
        name = found[1] if found else ""
        form = f"{name} is {_NAMES[name]}" if name in _NAMES else ""
    elif isinstance(error, AttributeError):
        if found := re.search(r"object has no attribute '(defer|trial|launch)'$", text):
            name = "submit" if found[1] == "launch" else found[1]
            return f"a running task finds itself by current_task().{name}: from {_PACKAGE}.engine import current_task"
        form = _of_attribute(text)
    elif isinstance(error, ModuleNotFoundError):
        name = (error.name or "").partition(".")[0]
        if (error.name or "").startswith("IPython.kernel"):
            return (
                f"IPython.kernel is {_PACKAGE} now, also in code for the engines: from {_PACKAGE} import client, from "
                f"{_PACKAGE}.errors import TaskRejectError, from {_PACKAGE}.engine import get_engine"
            )
        if error.name == "ipyparallel" or (error.name or "").startswith("IPython.parallel"):
            return f"{error.name} is {_PACKAGE}.ipyparallel here, also in code for the engines"
        form = f"{name} is {_MODULES[name]}" if name in _MODULES else ""
    elif isinstance(error, TypeError):
        form = _of_type(text)
    elif isinstance(error, LookupError) and "is not a text encoding" in text:
        form = "codecs.encode(data, 'hex') and the like: text has no such methods"
    return f"in Python 3, which the engines run, {form} ({_PAGE})" if form else ""


def add_remedy(error: BaseException) -> None:
    """Add the Python 3 form of what an error complains of as a note."""
    text = remedy(error)
    with contextlib.suppress(Exception):  # the exception's class may refuse notes
        if text and text not in getattr(error, "__notes__", ()):
            error.add_note(text)


# --------------------------------------------------------------------------------------------------
# What runs and means something else

_told: set[str] = set()
"""What this process has been told."""
_on_engines: dict[str, Any] = {}
"""Names that this process has placed on the engines: a whole number (or _WHOLE), or _OTHER for other values."""
_NAMES_MAX = 1000
_WHOLE = object()
_OTHER = object()
_MAYBE = "a division of unknown values"


def note_names(names: Mapping[str, Any]) -> None:
    """Remember which names on the engines are whole numbers."""
    if len(_on_engines) < _NAMES_MAX:
        _on_engines.update({name: _kept(value) for name, value in names.items()})


def tell_of_code(code: str, names: Mapping[str, Any] | None = None, keep: bool = False) -> None:
    """Tell of code that computes something else in Python 3 than in Python 2, in a program with IPython 0.10's names.

    Args:
        code: the code for the engines.
        names: the values that go with it.
        keep: the names that the code assigns stay on the engines.
    """
    if len(_told) >= _TOLD_MAX or not (keep or _has_words(code)) or not _is_old_program():
        return
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return  # the engine says what is wrong; or it is IPython's syntax
    if any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body):
        return
    found = _Reader(_on_engines | {name: _kept(value) for name, value in (names or {}).items()})
    found.visit(tree)
    if keep:
        note_names(found.values)
    for key, text in found.texts:
        if key not in _told and len(_told) < _TOLD_MAX:
            _told.add(key)
            tell_user(f"in code for the engines {text}; {_PAGE}")


def tell_of_iterators(names: Mapping[str, object]) -> None:
    """Tell of pulled values that Python 2 made lists, and that can be read only once now."""
    for name, value in names.items():
        kind = type(value)
        if (kind is map or kind is filter or kind is zip) and name not in _told:
            _told.add(name)
            word = kind.__name__
            text = f"{name!r} is a {word} object, which can be read only once: list({word}(…)) makes a list"
            tell_user(f"{text}; {_PAGE}")


def _kept(value: Any) -> Any:
    if type(value) is int or value is _WHOLE:
        return value
    # A sequence or array may hold whole numbers: that it is divided cannot be judged.
    return _OTHER if value is _OTHER or isinstance(value, float | complex | str) else None


def _has_words(code: str) -> bool:
    # Without a loop, for speed: a program makes thousands of tasks.
    return "/" in code or "print" in code or "exec" in code or "round" in code or "__" in code


_old: dict[int, tuple[int, bool]] = {}
"""The globals of a program (by identity) -> the number of names, and whether it had old ones then."""


def _is_old_program() -> bool:
    """Return whether the calling program, or the main one, has names of IPython 0.10's client."""
    main = sys.modules.get("__main__")
    return _has_old_names(sys._getframe(depth_of_user() - 1).f_globals) or (
        main is not None and _has_old_names(vars(main))
    )


def _has_old_names(names: dict[str, Any]) -> bool:
    known = _old.get(id(names))
    if known is not None and known[0] == len(names):
        return known[1]
    old: list[Any] = []
    if not set(sys.modules[_PACKAGE].__all__) <= names.keys():  # `from ipytaskfarm import *` brings the old ones too
        tasks = sys.modules.get(f"{_PACKAGE}.client.tasks")
        old = [
            sys.modules.get(f"{_PACKAGE}.client"),
            *(getattr(tasks, name, None) for name in ("StringTask", "MapTask")),
        ]
    found = any(value is each for value in list(names.values()) for each in old if each is not None)
    found = found or _imports_client(names.get("__file__"))
    _old[id(names)] = len(names), found
    return found


@functools.lru_cache(maxsize=64)
def _imports_client(path: str | None) -> bool:
    """Return whether a program imports the module of the old names, perhaps in a function."""
    text = "".join(linecache.getlines(path)) if path else ""
    return re.search(rf"\b{_PACKAGE}(\.client\b|\s+import\s+[^\n]*\bclient\b)", text) is not None


class _Reader(ast.NodeVisitor):
    """Reads code from top to bottom, and knows which names are whole numbers at each place."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        """Names with their values, see `_on_engines`."""
        self.texts: list[tuple[str, str]] = []
        """What is different, as a key and a sentence."""

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, value in pairs:
                self._bind(name, value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            as_read = ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target)
            same = ast.copy_location(ast.BinOp(as_read, node.op, node.value), node)
            if isinstance(node.op, ast.Div):
                self._look(same, f"{node.target.id} /= {ast.unparse(node.value)}")
            self._bind(node.target, same)

    def visit_For(self, node: ast.For) -> None:
        self._forget_values(node)
        call = node.iter
        if isinstance(node.target, ast.Name):
            self.values[node.target.id] = _WHOLE if _calls(call, "range") or _calls(call, "xrange") else None
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._forget_values(node)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.values)
        names = [each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)]
        self.values |= dict.fromkeys([*_assigned(node), *names])
        self.generic_visit(node)
        self.values = outer

    def _forget_values(self, node: ast.AST) -> None:
        """Forget the values of names that a loop assigns: after the first turn they may have any."""
        for name in _assigned(node):
            self.values[name] = _WHOLE if type(self.values.get(name)) is int else self.values.get(name)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.generic_visit(node)
        if isinstance(node.op, ast.Div):
            self._look(node, ast.unparse(node))

    def visit_Expr(self, node: ast.Expr) -> None:
        value = node.value
        if isinstance(value, ast.Name) and value.id == "print":
            self._tell("print", "`print` alone prints nothing in Python 3: print() prints an empty line")
        elif isinstance(value, ast.Tuple) and value.elts and _calls(value.elts[0], "print"):
            text = ast.unparse(value).strip("()")
            alone = "ends its line in Python 3: print(a, end=' ') does not"
            both = "prints only its first value in Python 3: print(a, b) prints both"
            self._tell("print,", f"{shown(text)} {both if len(value.elts) > 1 else alone}")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if _calls(node.left, "exec") and isinstance(node.ops[0], ast.In):
            text = shown(ast.unparse(node))
            self._tell("exec", f"{text} runs in the engine's own namespace in Python 3: exec(code, namespace)")
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
        for name in [*methods, *_assigned(node)]:
            if name in _METHODS:
                self._tell(name, f"{name} of class {node.name} does nothing in Python 3: {_METHODS[name]}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if _calls(node, "round") and len(node.args) == 1:
            text = shown(ast.unparse(node))
            self._tell("round", f"{text} is a whole number in Python 3, and the even one of two that are as near")
        self.generic_visit(node)

    def _tell(self, key: str, text: str) -> None:
        self.texts.append((key, text))

    def _look(self, node: ast.BinOp, text: str) -> None:
        """Tell of a division that has, or may have, another value."""
        left, right = self._value(node.left), self._value(node.right)
        if left is _OTHER or right is _OTHER or (type(right) is int and right == 0):
            return
        if left is None or right is None:
            may = "of whole numbers is a fraction in Python 3, and was a whole number in Python 2: // divides as then"
            self._tell(_MAYBE, f"{shown(text)} {may}, and `from __future__ import division` is for what is meant so")
            return
        now = "a fraction in Python 3, and was a whole number in Python 2"
        if type(left) is int and type(right) is int:
            if left % right == 0:
                return
            now = f"{left / right:.6g} in Python 3, and was {left // right} in Python 2"
        self._tell(text, f"{shown(text)} is {now}: // divides as then")

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.values[target.id] = self._value(value)

    def _value(self, node: ast.expr) -> Any:
        """Return the value that an expression had in Python 2: a whole number, _WHOLE, _OTHER, or None if that is not
        known.
        """
        if isinstance(node, ast.Constant):
            return node.value if type(node.value) is int else _OTHER
        if isinstance(node, ast.Name):
            return self.values.get(node.id)
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand)
            return -value if type(value) is int and isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return _OF_CALLS.get(node.func.id)
        if isinstance(node, ast.Attribute):
            return _OTHER if node.attr in ("pi", "e") else None
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left), self._value(node.right)
            if left is _OTHER or right is _OTHER:
                return _OTHER  # of a float and a whole number
            if left is None or right is None or not isinstance(node.op, _WHOLE_OPERATIONS):
                return None
            return _computed(node.op, left, right)
        return None


_OF_CALLS = {"len": _WHOLE, "int": _WHOLE, "ord": _WHOLE, "float": _OTHER, "sqrt": _OTHER, "str": _OTHER}
_WHOLE_OPERATIONS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_BITS_MAX = 256


def _computed(op: ast.operator, left: Any, right: Any) -> Any:
    if type(left) is not int or type(right) is not int or max(left.bit_length(), right.bit_length()) > _BITS_MAX:
        return _WHOLE
    if isinstance(op, ast.Add):
        return left + right
    if isinstance(op, ast.Sub):
        return left - right
    if isinstance(op, ast.Mult):
        return left * right
    if right == 0:
        return _WHOLE
    return left % right if isinstance(op, ast.Mod) else left // right


def _assigned(node: ast.AST) -> list[str]:
    return [each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]


def _calls(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
