"""Values that people have among their arguments, globals, defaults and cells: a line for each.

A line is ``"name": (source, key)``.  `source` is Python whose last line is the value; it is run in a namespace that
plays the notebook.  `key` maps the value to something that `==` compares (`PLAIN`: the value itself): what came back
must be of the same type and have an equal key.
"""

# ruff: noqa: E501 - a line for each value

from __future__ import annotations

import pickle
import types
from collections.abc import Callable
from typing import Any

Key = Callable[[Any], Any]


def PLAIN(value: Any) -> Any:  # noqa: N802 - reads as a constant in the table
    """Compare by `==`."""
    return value


def same(value: Any) -> Any:
    """Compare by identity, for what exists once per process: its pickle names it."""
    return id(value)


def content(value: Any) -> Any:
    """Compare the items of an iterable."""
    return list(value)


def state(value: Any) -> Any:
    """Compare pickles, for types without an `==` of their own."""
    return pickle.dumps(value)


def array(value: Any) -> Any:
    """Compare arrays by type, shape and bytes."""
    return type(value), value.dtype, value.shape, value.tolist() if value.dtype.kind == "O" else value.tobytes()


def dense(value: Any) -> Any:
    """Compare sparse arrays by what they hold."""
    return array(value.toarray()), value.format


def frame(value: Any) -> Any:
    """Compare pandas objects by content, labels and types."""
    kinds = value.dtypes.tolist() if hasattr(value, "columns") else [value.dtype]
    return value.to_json(date_format="iso", orient="split"), kinds, list(map(repr, value.index))


def text(value: Any) -> Any:
    """Compare by `repr`, where that tells all of it."""
    return repr(value)


def called(*args: Any) -> Key:
    """Compare what calling it gives."""
    return lambda value: value(*args)


def via(attribute: str, *args: Any) -> Key:
    """Compare what one of its methods gives."""
    return lambda value: _listed(getattr(value, attribute)(*args))


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def attributes(*names: str) -> Key:
    """Compare some of its attributes."""
    return lambda value: [_listed(getattr(value, name)) for name in names]


def mapped(value: Any) -> Any:
    """Compare as a dict."""
    return dict(value.items())


def kind(value: Any) -> Any:
    """Compare types alone."""
    return type(value)


def code_of(value: types.CodeType) -> Any:
    """Compare code objects by what they do."""
    return value.co_code, value.co_names


NP = "import numpy as np\n"
PD = "import numpy as np, pandas as pd\n"
SP = "import numpy as np, scipy.sparse as sp\n"

BUILTIN: dict[str, tuple[str, Key]] = {
    "None": ("None", PLAIN),
    "Ellipsis": ("...", same),
    "NotImplemented": ("NotImplemented", same),
    "True": ("True", PLAIN),
    "int": ("7", PLAIN),
    "big int": ("10 ** 400", PLAIN),
    "float": ("0.1", PLAIN),
    "nan": ("float('nan')", text),
    "complex": ("1 + 2j", PLAIN),
    "str": ("'caf\\u00e9'", PLAIN),
    "surrogate": ("'caf\\udce9'", PLAIN),
    "bytes": ("b'ab' * 20", PLAIN),
    "large bytes": ("b'ab' * 50_000", PLAIN),
    "bytearray": ("bytearray(b'abc')", PLAIN),
    "memoryview": ("memoryview(b'abcdef')", PLAIN),
    "memoryview of shorts": ("memoryview(bytearray(8)).cast('H', (2, 2))", via("tolist")),
    "memoryview slice": ("memoryview(b'abcdef')[::2]", PLAIN),
    "large memoryview": ("memoryview(bytearray(100_000))", PLAIN),
    "tuple": ("(1, ('a', None))", PLAIN),
    "list": ("[1, [2, 'x']]", PLAIN),
    "dict": ("{'a': {1: 2.5}, (1, 2): 'b'}", PLAIN),
    "set": ("{1, 'a', (2, 3)}", PLAIN),
    "frozenset": ("frozenset('abc')", PLAIN),
    "range": ("range(2, 9, 3)", PLAIN),
    "slice": ("slice(1, None, 2)", PLAIN),
    "dict keys": ("{'a': 1, 'b': 2}.keys()", content),
    "dict values": ("{'a': 1, 'b': 2}.values()", content),
    "dict items": ("{'a': 1, 'b': 2}.items()", content),
    "list iterator": ("iter([1, 2, 3])", lambda value: list(__import__("copy").copy(value))),
    "enumerate": ("enumerate('ab', 3)", lambda value: list(__import__("copy").copy(value))),
    "reversed": ("reversed([1, 2, 3])", lambda value: list(__import__("copy").copy(value))),
    "zip": ("zip('ab', [1, 2])", lambda value: list(__import__("copy").copy(value))),
    "map": ("map(str, [1, 2])", lambda value: list(__import__("copy").copy(value))),
    "filter": ("filter(None, [1, 0])", lambda value: list(__import__("copy").copy(value))),
    "object": ("object()", kind),
    "builtin function": ("len", same),
    "builtin type": ("dict", same),
    "NoneType": ("type(None)", same),
    "function type": ("type(lambda: 0)", same),
    "bound builtin": ("'a-b'.split", called("-")),
    "bound list method": ("[3, 1].index", called(1)),
    "classmethod of a builtin": ("dict.fromkeys", called("ab")),
    "method descriptor": ("str.upper", same),
    "wrapper descriptor": ("object.__init__", same),
    "method wrapper": ("(1).__add__", called(2)),
    "getset descriptor": ("float.real", same),
    "member descriptor": ("import functools\nfunctools.partial.func", same),
    "class method descriptor": ("dict.__dict__['fromkeys']", same),
    "code": ("compile('a + 1', 'x', 'eval')", code_of),
    "exception": ("ValueError('a', 3)", text),
    "OSError": ("FileNotFoundError(2, 'No such file', 'x')", attributes("errno", "filename", "args")),
    "exception group": ("ExceptionGroup('g', [ValueError(1), TypeError('x')])", text),
    "generic alias": ("list[int]", PLAIN),
    "union": ("int | None", PLAIN),
    "mapping proxy": ("import types\ntypes.MappingProxyType({'a': 1})", PLAIN),
    "namespace of a class": ("int.__dict__", lambda value: value == int.__dict__),
    "simple namespace": ("import types\ntypes.SimpleNamespace(a=1)", PLAIN),
    "module": ("import math\nmath", same),
    "submodule": ("import xml.etree.ElementTree\nxml.etree.ElementTree", same),
}

LIBRARY: dict[str, tuple[str, Key]] = {
    "date": ("import datetime\ndatetime.date(2024, 2, 29)", PLAIN),
    "datetime": ("import datetime\ndatetime.datetime(2024, 2, 29, 1, 2, 3, 4)", PLAIN),
    "aware datetime": ("import datetime as d\nd.datetime(2024, 1, 1, tzinfo=d.timezone(d.timedelta(hours=2)))", PLAIN),
    "timedelta": ("import datetime\ndatetime.timedelta(3, 4, 5)", PLAIN),
    "time": ("import datetime\ndatetime.time(1, 2)", PLAIN),
    "zone": ("import zoneinfo\nzoneinfo.ZoneInfo('UTC')", same),
    "struct_time": ("import time\ntime.gmtime(0)", PLAIN),
    "Decimal": ("import decimal\ndecimal.Decimal('1.10')", text),
    "decimal context": ("import decimal\ndecimal.Context(prec=7)", text),
    "Fraction": ("import fractions\nfractions.Fraction(1, 3)", PLAIN),
    "UUID": ("import uuid\nuuid.UUID(int=5)", PLAIN),
    "Path": ("import pathlib\npathlib.Path('a/b')", PLAIN),
    "PurePosixPath": ("import pathlib\npathlib.PurePosixPath('/a')", PLAIN),
    "pattern": ("import re\nre.compile('a+', re.I)", PLAIN),
    "regex flag": ("import re\nre.I | re.M", PLAIN),
    "IPv4Address": ("import ipaddress\nipaddress.ip_address('1.2.3.4')", PLAIN),
    "IPv6Network": ("import ipaddress\nipaddress.ip_network('::/64')", PLAIN),
    "OrderedDict": ("import collections\ncollections.OrderedDict(b=1, a=2)", PLAIN),
    "odict keys": ("import collections\ncollections.OrderedDict(b=1, a=2).keys()", content),
    "odict values": ("import collections\ncollections.OrderedDict(b=1, a=2).values()", content),
    "odict items": ("import collections\ncollections.OrderedDict(b=1, a=2).items()", content),
    "Counter": ("import collections\ncollections.Counter('aab')", PLAIN),
    "deque": ("import collections\ncollections.deque([1, 2], maxlen=5)", text),
    "defaultdict": ("import collections\ncollections.defaultdict(list, a=[1])", PLAIN),
    "defaultdict of a lambda": (
        "import collections\ncollections.defaultdict(lambda: 5, a=1)",
        lambda v: (v.default_factory(), v["a"]),
    ),
    "ChainMap": ("import collections\ncollections.ChainMap({'a': 1}, {'b': 2})", PLAIN),
    "UserDict": ("import collections\ncollections.UserDict(a=1)", PLAIN),
    "UserList": ("import collections\ncollections.UserList([1])", PLAIN),
    "UserString": ("import collections\ncollections.UserString('x')", PLAIN),
    "namedtuple": ("import collections\nPair = collections.namedtuple('Pair', 'a b')\nPair(1, 2)", tuple),
    "array": ("import array\narray.array('d', [1, 2.5])", PLAIN),
    "partial": ("import functools\nfunctools.partial(int, base=2)", called("101")),
    "partialmethod": ("import functools\nfunctools.partialmethod(int, 5)", attributes("func", "args")),
    "lru_cache": ("import functools\n@functools.lru_cache(5)\ndef f(x): return x + 1\nf", called(4)),
    "cache over a builtin": ("import functools\nfunctools.cache(abs)", called(-4)),
    "singledispatch": (
        "import functools\n@functools.singledispatch\ndef f(x): return 'any'\n"
        "@f.register\ndef _(x: int): return 'int'\nf",
        lambda value: (value(1), value("x")),
    ),
    "singledispatchmethod": (
        "import functools\ndef f(self, x): return 'any'\nm = functools.singledispatchmethod(f)\n"
        "m.register(int, lambda self, x: 'int')\nm",
        lambda value: (value.dispatcher(0, 1), value.dispatcher.dispatch(int)(0, 1)),
    ),
    "cached_property": ("import functools\nfunctools.cached_property(len)", attributes("func")),
    "itemgetter": ("import operator\noperator.itemgetter(1, 'a')", text),
    "attrgetter": ("import operator\noperator.attrgetter('real')", called(3)),
    "methodcaller": ("import operator\noperator.methodcaller('split', '-')", called("a-b")),
    "operator": ("import operator\noperator.add", same),
    "property": ("property(lambda self: 5)", lambda value: value.fget(0)),
    "staticmethod": ("staticmethod(len)", lambda value: value.__func__("ab")),
    "classmethod": ("classmethod(lambda cls: 5)", lambda value: value.__func__(0)),
    "abstractclassmethod": ("import abc\nabc.abstractclassmethod(lambda cls: 5)", lambda value: value.__func__(0)),
    "abstractstaticmethod": ("import abc\nabc.abstractstaticmethod(lambda: 5)", lambda value: value.__func__()),
    "abstractproperty": ("import abc\nabc.abstractproperty(lambda self: 5)", lambda value: value.fget(0)),
    "own kind of property": (
        "class lazy(property):\n    pass\nlazy(lambda self: 5)",
        lambda value: (type(value).__name__, value.fget(0)),
    ),
    "itertools.count": ("import itertools\nitertools.count(3, 2)", text),
    "itertools.chain": ("import itertools\nitertools.chain", same),
    "random.Random": ("import random\nrandom.Random(3)", lambda value: value.getstate()),
    "random.random": ("import random\nrandom.random", same),
    "random.randint": ("import random\nrandom.randint", PLAIN),
    "StringIO": ("import io\nio.StringIO('a\\nb')", via("getvalue")),
    "BytesIO": ("import io\nio.BytesIO(b'ab')", via("getvalue")),
    "stderr": ("import sys\nsys.stderr", lambda value: value is __import__("sys").stderr),
    "stdout": ("import sys\nsys.stdout", lambda value: value is __import__("sys").stdout),
    "logger": ("import logging\nlogging.getLogger('zoo.a')", same),
    "logger made by hand": (
        "import logging, sys\nlog = logging.Logger('own')\nlog.addHandler(logging.StreamHandler(sys.stderr))\nlog",
        lambda value: (value.name, len(value.handlers)),
    ),
    "root logger": ("import logging\nlogging.getLogger()", same),
    "logger adapter": (
        "import logging\nlogging.LoggerAdapter(logging.getLogger('zoo'), {'a': 1})",
        attributes("extra"),
    ),
    "stream handler": (
        "import logging, sys\nlogging.StreamHandler(sys.stderr)",
        lambda value: (value.stream is __import__("sys").stderr, value.level, value.lock is not None),
    ),
    "null handler": ("import logging\nlogging.NullHandler(7)", attributes("level")),
    "log formatter": ("import logging\nlogging.Formatter('%(message)s')", attributes("_fmt")),
    "log record": ("import logging\nlogging.makeLogRecord({'msg': 'x', 'lineno': 3})", via("getMessage")),
    "enum member": ("import http\nhttp.HTTPStatus.OK", same),
    "own enum member": ("import enum\nclass E(enum.Enum):\n    A = 1\nE.A", attributes("name", "value")),
    "signal": ("import signal\nsignal.SIGTERM", same),
    "TypeVar": ("import typing\ntyping.TypeVar('T', bound=int)", attributes("__name__", "__bound__")),
    "typing generic": ("import typing\ntyping.Dict[str, typing.List[int]]", PLAIN),
    "Optional": ("import typing\ntyping.Optional[int]", PLAIN),
    "Callable type": ("import typing\ntyping.Callable[[int], str]", PLAIN),
    "Literal": ("import typing\ntyping.Literal['a', 1]", PLAIN),
    "Any": ("import typing\ntyping.Any", same),
    "dataclass field": ("import dataclasses\ndataclasses.field(default=3)", attributes("default", "init")),
    "MISSING": ("import dataclasses\ndataclasses.MISSING", same),
    "dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n    a: int = 1\nD(4)",
        lambda value: __import__("dataclasses").asdict(value),
    ),
    "weak reference": (
        "import weakref\nclass W:\n    n = 5\nkeep = W()\nweakref.ref(keep)",
        lambda value: (isinstance(value, __import__("weakref").ref), value().n),
    ),
    "weak method": (
        "import weakref\nclass W:\n    def m(self): return 5\nkeep = W()\nweakref.WeakMethod(keep.m)",
        lambda value: (isinstance(value, __import__("weakref").WeakMethod), value()()),
    ),
    "dead weak reference": ("import weakref\nclass W: pass\nweakref.ref(W())", called()),
    "WeakSet": ("import weakref\nclass W: pass\nkeep = [W(), W()]\nweakref.WeakSet(keep)", len),
    "WeakKeyDictionary": (
        "import weakref\nclass W: pass\nkeep = [W(), W()]\nweakref.WeakKeyDictionary(zip(keep, 'ab'))",
        lambda value: sorted(value.values()),
    ),
    "WeakValueDictionary": (
        "import weakref\nclass W: pass\nkeep = [W(), W()]\nweakref.WeakValueDictionary(zip('ab', keep))",
        lambda value: sorted(value),
    ),
    "configparser": (
        "import configparser\nc = configparser.ConfigParser()\nc['a'] = {'x': '1'}\nc",
        lambda v: v["a"]["x"],
    ),
    "argparse.Namespace": ("import argparse\nargparse.Namespace(a=1)", PLAIN),
    "ArgumentParser": (
        "import argparse\np = argparse.ArgumentParser(prog='p')\np.add_argument('--n', type=int)\np",
        lambda value: value.parse_args(["--n", "3"]).n,
    ),
    "string.Template": ("import string\nstring.Template('$a')", via("safe_substitute", {"a": 1})),
    "compiled format": ("import struct\nstruct.Struct('<ih')", via("pack", 1, 2)),
    "JSON decoder": (
        "import json\njson.JSONDecoder(object_hook=lambda d: sorted(d), parse_int=float)",
        via("decode", '{"b": 1, "a": {"c": 2}}'),
    ),
    "msgspec decoder": (
        "import msgspec\nclass P(msgspec.Struct):\n    x: float\nmsgspec.json.Decoder(P, strict=False)",
        lambda value: value.decode(b'{"x": "1.5"}').x,
    ),
    "msgspec encoder with a hook": (
        "import msgspec\nmsgspec.msgpack.Encoder(enc_hook=lambda v: [*v.args], order='sorted')",
        via("encode", {"b": ValueError(1), "a": 1}),
    ),
    "length_hint": ("import operator\noperator.length_hint", same),
    "XML element": (
        "import xml.etree.ElementTree as et\net.fromstring('<a b=\"1\"><c/></a>')",
        attributes("tag", "attrib"),
    ),
    "JSON encoder": ("import json\njson.JSONEncoder(indent=2)", via("encode", {"a": 1})),
    "url": ("import urllib.parse\nurllib.parse.urlsplit('http://a/b?c')", PLAIN),
    "request": ("import urllib.request\nurllib.request.Request('http://a/b')", attributes("full_url")),
    "email message": ("import email\nemail.message_from_string('A: b\\n\\nc')", via("as_string")),
    "cookie": ("import http.cookies\nhttp.cookies.SimpleCookie('a=b')", via("output")),
    "textwrap": ("import textwrap\ntextwrap.TextWrapper(width=9)", attributes("width")),
    "signature": ("import inspect\ninspect.signature(lambda a, b=2: 0)", PLAIN),
    "heap of tuples": ("import heapq\nh = [(2, 'b'), (1, 'a')]\nheapq.heapify(h)\nh", PLAIN),
    "contextlib.suppress": ("import contextlib\ncontextlib.suppress(KeyError)", kind),
    "NormalDist": ("import statistics\nstatistics.NormalDist(1, 2)", PLAIN),
    "calendar": ("import calendar\ncalendar.TextCalendar(6)", attributes("firstweekday")),
    "locale-free translation": ("str.maketrans('ab', 'cd')", PLAIN),
    "ast": ("import ast\nast.parse('a + 1')", lambda value: __import__("ast").dump(value)),
    "difflib": ("import difflib\ndifflib.SequenceMatcher(None, 'ab', 'ac')", via("ratio")),
    "stat result": ("import os\nos.stat('/')", tuple),
    "SafeUUID": ("import uuid\nuuid.SafeUUID.unknown", same),
    "queue of a list": ("import graphlib\ngraphlib.TopologicalSorter", same),
}

NUMERIC: dict[str, tuple[str, Key]] = {
    "array of floats": (NP + "np.arange(5.0)", array),
    "2d array": (NP + "np.arange(6).reshape(2, 3)", array),
    "fortran array": (NP + "np.asfortranarray(np.arange(6).reshape(2, 3))", array),
    "strided array": (NP + "np.arange(10)[::3]", array),
    "large array": (NP + "np.arange(20_000)", array),
    "large strided array": (NP + "np.arange(40_000)[::2]", array),
    "read-only array": (NP + "a = np.arange(5)\na.flags.writeable = False\na", lambda v: (array(v), v.flags.writeable)),
    "empty array": (NP + "np.empty((0, 3))", array),
    "0d array": (NP + "np.array(5)", array),
    "object array": (NP + "np.array([1, 'a', None], dtype=object)", array),
    "string array": (NP + "np.array(['a', 'bc'])", array),
    "StringDType array": (NP + "np.array(['a', 'bc'], dtype=np.dtypes.StringDType())", content),
    "structured array": (NP + "np.array([(1, 2.5)], dtype=[('a', 'i4'), ('b', 'f8')])", array),
    "record array": (NP + "np.rec.array([(1, 2.5)], names='a,b')", lambda value: value.tolist()),
    "masked array": (NP + "np.ma.array([1, 2], mask=[0, 1])", lambda value: (value.tolist(), value.mask.tolist())),
    "masked": (NP + "np.ma.masked", same),
    "matrix": (NP + "np.asmatrix([[1, 2]])", array),
    "datetime array": (NP + "np.array(['2024-01-01'], dtype='M8[D]')", array),
    "bool array": (NP + "np.array([True, False])", array),
    "complex array": (NP + "np.array([1 + 2j])", array),
    "float16 array": (NP + "np.ones(3, 'f2')", array),
    "big-endian array": (NP + "np.arange(3, dtype='>i4')", array),
    "memmap": (
        NP + "import tempfile\nm = np.memmap(tempfile.TemporaryFile(), 'i4', 'w+', shape=3)\nm[:] = 7\nm",
        content,
    ),
    "np.float64": (NP + "np.float64(1.5)", PLAIN),
    "np.float32": (NP + "np.float32(1.5)", PLAIN),
    "np.int8": (NP + "np.int8(5)", PLAIN),
    "np.bool": (NP + "np.True_", PLAIN),
    "np.str_": (NP + "np.str_('a')", PLAIN),
    "np.datetime64": (NP + "np.datetime64('2024-01-01')", PLAIN),
    "np.timedelta64": (NP + "np.timedelta64(3, 's')", PLAIN),
    "np.void": (NP + "np.void(b'ab')", PLAIN),
    "dtype": (NP + "np.dtype('f4')", PLAIN),
    "structured dtype": (NP + "np.dtype([('a', 'i4')])", PLAIN),
    "dtype class": (NP + "type(np.dtype('f4'))", same),
    "scalar type": (NP + "np.float32", same),
    "ufunc": (NP + "np.add", same),
    "ufunc method": (NP + "np.add.reduce", called([1, 2, 3])),
    "own ufunc": (NP + "np.frompyfunc", same),
    "array function": (NP + "np.dot", same),
    "vectorize": (NP + "np.vectorize(lambda x: x + 1)", lambda value: value([1, 2]).tolist()),
    "poly1d": (NP + "np.poly1d([1, 2, 3])", called(2)),
    "Polynomial": (NP + "np.polynomial.Polynomial([1, 2, 3])", called(2)),
    "r_": (NP + "np.r_", kind),
    "Generator": (NP + "np.random.default_rng(3)", lambda value: value.bit_generator.state),
    "Generator over MT": (NP + "np.random.Generator(np.random.MT19937(3))", lambda v: text(v.bit_generator.state)),
    "RandomState": (NP + "np.random.RandomState(3)", lambda value: text(value.get_state())),
    "SeedSequence": (NP + "np.random.SeedSequence(5)", attributes("entropy")),
    "bit generator": (NP + "np.random.PCG64(3)", lambda value: value.state),
    "np.random.rand": (NP + "np.random.rand", PLAIN),
    "np.random.normal": (NP + "np.random.normal", PLAIN),
    "method of a Generator": (NP + "np.random.default_rng(3).integers", called(1000)),
    "method of an array": (NP + "np.arange(4).sum", called()),
    "iinfo": (NP + "np.iinfo('i4')", attributes("max")),
    "newaxis": (NP + "np.newaxis", PLAIN),
    "linalg error": (NP + "np.linalg.LinAlgError('x')", text),
    "errstate": (NP + "np.errstate(all='ignore')", kind),
}

PANDAS: dict[str, tuple[str, Key]] = {
    "DataFrame": (PD + "pd.DataFrame({'a': [1, 2], 'b': [1.5, None], 'c': ['x', 'y']})", frame),
    "empty DataFrame": (PD + "pd.DataFrame()", frame),
    "large DataFrame": (PD + "pd.DataFrame({'a': np.arange(9000), 'b': 1.5})", frame),
    "DataFrame of objects": (PD + "pd.DataFrame({'a': [[1], {'b': 2}]}, dtype=object)", frame),
    "DataFrame of dates": (PD + "pd.DataFrame({'t': pd.date_range('2020', periods=3, tz='UTC')})", frame),
    "DataFrame of categories": (PD + "pd.DataFrame({'k': pd.Categorical(list('aba'))})", frame),
    "DataFrame slice": (PD + "pd.DataFrame({'a': range(9)}).iloc[::2]", frame),
    "MultiIndex frame": (PD + "pd.DataFrame({'a': [1, 2], 'b': [3, 4], 'c': [5, 6]}).set_index(['a', 'b'])", frame),
    "Series": (PD + "pd.Series([1, 2], index=['a', 'b'], name='n')", lambda v: (frame(v), v.name)),
    "Series of strings": (PD + "pd.Series(['a', None])", frame),
    "nullable Series": (PD + "pd.Series([1, None], dtype='Int64')", frame),
    "boolean Series": (PD + "pd.Series([True, None], dtype='boolean')", frame),
    "Series of intervals": (PD + "pd.Series(pd.interval_range(0, 3))", lambda value: list(map(repr, value))),
    "sparse Series": (PD + "pd.Series(pd.arrays.SparseArray([0, 0, 1]))", content),
    "Index": (PD + "pd.Index(['a', 'b'], name='i')", lambda value: (list(value), value.name)),
    "RangeIndex": (PD + "pd.RangeIndex(3)", content),
    "MultiIndex": (PD + "pd.MultiIndex.from_product([[1, 2], ['a']])", content),
    "DatetimeIndex": (PD + "pd.date_range('2020', periods=3, freq='D')", lambda value: (list(value), value.freq)),
    "PeriodIndex": (PD + "pd.period_range('2020', periods=3, freq='M')", content),
    "CategoricalIndex": (PD + "pd.CategoricalIndex(['a', 'b'])", content),
    "Categorical": (PD + "pd.Categorical(['a', 'b', 'a'])", content),
    "Timestamp": (PD + "pd.Timestamp('2020-01-01', tz='UTC')", PLAIN),
    "Timedelta": (PD + "pd.Timedelta('1h')", PLAIN),
    "NaT": (PD + "pd.NaT", same),
    "NA": (PD + "pd.NA", same),
    "Period": (PD + "pd.Period('2020-01')", PLAIN),
    "Interval": (PD + "pd.Interval(0, 1)", PLAIN),
    "DateOffset": (PD + "pd.DateOffset(months=1)", PLAIN),
    "business day": (PD + "pd.offsets.BDay(2)", PLAIN),
    "CategoricalDtype": (PD + "pd.CategoricalDtype(['a'])", PLAIN),
    "Int64Dtype": (PD + "pd.Int64Dtype()", PLAIN),
    "DatetimeTZDtype": (PD + "pd.DatetimeTZDtype('ns', 'UTC')", PLAIN),
    "StringDtype": (PD + "pd.StringDtype('python')", PLAIN),
    "df.head": (PD + "pd.DataFrame({'a': range(9)}).head", lambda value: value(2).a.tolist()),
    "df.query": (PD + "pd.DataFrame({'a': range(9)}).query", lambda value: value("a > 6").a.tolist()),
    "partial over a frame": (
        PD + "import functools\nfunctools.partial(pd.DataFrame.head, pd.DataFrame({'a': range(9)}))",
        lambda value: value(2).a.tolist(),
    ),
    "GroupBy": (PD + "pd.DataFrame({'a': [1, 1, 2], 'b': [3, 4, 5]}).groupby('a')", lambda v: v.b.sum().tolist()),
    "Timestamp.now": (PD + "pd.Timestamp.now", PLAIN),
    "pd.concat": (PD + "pd.concat", same),
    "to_datetime": (PD + "pd.to_datetime", same),
    "Grouper": (PD + "pd.Grouper(key='a')", attributes("key")),
    "rolling": (PD + "pd.Series([1, 2, 3]).rolling(2)", lambda value: value.sum().tolist()[1:]),
}

SCIENCE: dict[str, tuple[str, Key]] = {
    "norm": ("from scipy.stats import norm\nnorm", via("cdf", 0.5)),
    "frozen norm": ("from scipy.stats import norm\nnorm(1, 2)", via("cdf", 0.5)),
    "norm.pdf": ("from scipy.stats import norm\nnorm.pdf", called(0.5)),
    "poisson": ("from scipy.stats import poisson\npoisson(3)", via("pmf", 2)),
    "multivariate normal": (
        "from scipy.stats import multivariate_normal\nmultivariate_normal([0, 0])",
        via("pdf", [0, 1]),
    ),
    "gaussian_kde": ("from scipy.stats import gaussian_kde\ngaussian_kde([1, 2, 4])", lambda value: value(2).tolist()),
    "csr matrix": (SP + "sp.csr_matrix(np.eye(3))", dense),
    "csc array": (SP + "sp.csc_array(np.eye(3))", dense),
    "coo matrix": (SP + "sp.coo_matrix(np.eye(3))", dense),
    "lil matrix": (SP + "sp.lil_matrix(np.eye(3))", dense),
    "dok matrix": (SP + "sp.dok_matrix(np.eye(3))", dense),
    "dia matrix": (SP + "sp.dia_matrix(np.eye(3))", dense),
    "interp1d": ("from scipy.interpolate import interp1d\ninterp1d([0, 1], [1, 3])", lambda value: float(value(0.5))),
    "CubicSpline": (
        "from scipy.interpolate import CubicSpline\nCubicSpline([0, 1, 2], [1, 3, 2])",
        lambda v: float(v(0.5)),
    ),
    "KDTree": (NP + "from scipy.spatial import KDTree\nKDTree(np.eye(3))", lambda value: value.query([1, 0, 0])[1]),
    "cKDTree": (NP + "from scipy.spatial import cKDTree\ncKDTree(np.eye(3))", lambda value: value.query([1, 0, 0])[1]),
    "Rotation": ("from scipy.spatial.transform import Rotation\nRotation.from_euler('z', 1.0)", via("as_matrix")),
    "special ufunc": ("from scipy.special import gamma\ngamma", same),
    "Cython function": ("from scipy.special.cython_special import gamma\ngamma", called(4.0)),
    "optimize result": ("from scipy.optimize import OptimizeResult\nOptimizeResult(x=1)", PLAIN),
    "minimize": ("from scipy.optimize import minimize\nminimize", same),
    "LinearOperator": (
        NP + "from scipy.sparse.linalg import aslinearoperator\naslinearoperator(np.eye(2))",
        via("matvec", [1, 2]),
    ),
    "signal lti": ("from scipy.signal import lti\nlti([1], [1, 2])", attributes("num", "den")),
    "linear model": (
        "from sklearn.linear_model import LinearRegression\nLinearRegression().fit([[0], [1]], [1, 3])",
        via("predict", [[2]]),
    ),
    "unfitted estimator": ("from sklearn.linear_model import Ridge\nRidge(alpha=2)", via("get_params")),
    "random forest": (
        "from sklearn.ensemble import RandomForestClassifier\n"
        "RandomForestClassifier(3, random_state=0).fit([[0], [1], [2]], [0, 1, 1])",
        via("predict_proba", [[2]]),
    ),
    "gradient boosting": (
        "from sklearn.ensemble import GradientBoostingRegressor\n"
        "GradientBoostingRegressor(n_estimators=3).fit([[0], [1], [2]], [0, 1, 1])",
        via("predict", [[2]]),
    ),
    "SVC": ("from sklearn.svm import SVC\nSVC().fit([[0], [1]], [0, 1])", via("predict", [[2]])),
    "neighbours": (
        "from sklearn.neighbors import KNeighborsClassifier\nKNeighborsClassifier(1).fit([[0], [1]], [0, 1])",
        via("predict", [[2]]),
    ),
    "pipeline": (
        "from sklearn.pipeline import make_pipeline\nfrom sklearn.preprocessing import StandardScaler, FunctionTransformer\n"
        "make_pipeline(FunctionTransformer(lambda x: x * 2), StandardScaler()).fit([[0], [1]])",
        via("transform", [[2.0]]),
    ),
    "KMeans": ("from sklearn.cluster import KMeans\nKMeans(2, n_init=1, random_state=0)", via("get_params")),
    "estimator's predict": (
        "from sklearn.linear_model import LinearRegression\nLinearRegression().fit([[0], [1]], [1, 3]).predict",
        lambda value: value([[2]]).tolist(),
    ),
    "TfidfVectorizer": (
        "from sklearn.feature_extraction.text import TfidfVectorizer\nTfidfVectorizer().fit(['a bc', 'bc de'])",
        lambda value: value.transform(["bc"]).toarray().tolist(),
    ),
    "scorer": ("from sklearn.metrics import make_scorer, f1_score\nmake_scorer(f1_score)", text),
    "KFold": ("from sklearn.model_selection import KFold\nKFold(3)", text),
    "kernel": ("from sklearn.gaussian_process.kernels import RBF\nRBF(2.0)", PLAIN),
    "grid search": (
        "from sklearn.model_selection import GridSearchCV\nfrom sklearn.svm import SVC\nGridSearchCV(SVC(), {'C': [1, 2]})",
        lambda value: value.param_grid,
    ),
    "figure": (
        "import matplotlib\nmatplotlib.use('agg')\nfrom matplotlib.figure import Figure\nf = Figure()\n"
        "f.subplots().plot([1, 2])\nf",
        lambda value: value.axes[0].lines[0].get_ydata().tolist(),
    ),
    "colormap": ("import matplotlib\nmatplotlib.colormaps['viridis']", PLAIN),
    "normalisation": ("from matplotlib.colors import LogNorm\nLogNorm(1, 10)", lambda value: float(value(3))),
    "matplotlib path": (
        "from matplotlib.path import Path\nPath([[0, 0], [1, 1]])",
        lambda value: value.vertices.tolist(),
    ),
    "transform": ("from matplotlib.transforms import Affine2D\nAffine2D().scale(2)", via("get_matrix")),
    "rcParams": ("import matplotlib\nmatplotlib.rcParams", lambda value: value["lines.linewidth"]),
    "PIL image": ("from PIL import Image\nImage.new('L', (2, 2), 7)", via("tobytes")),
    "pydantic model": ("import pydantic\nclass M(pydantic.BaseModel):\n    a: int\nM(a=3)", via("model_dump")),
    "attrs class": ("import attrs\n@attrs.define\nclass A:\n    x: int\nA(3)", attributes("x")),
    "msgspec encoder": ("import msgspec\nmsgspec.json.encode", same),
    "tqdm": ("import tqdm\ntqdm.tqdm", same),
    "joblib.delayed": ("import joblib\njoblib.delayed(abs)", lambda value: value(-3)[1]),
    "dask delayed": ("import dask\ndask.delayed(abs)(-3)", via("compute")),
    "greenlet type": ("import greenlet\ngreenlet.greenlet", same),
    "zmq constant": ("import zmq\nzmq.REQ", same),
    "dateutil rrule": ("from dateutil.relativedelta import relativedelta\nrelativedelta(days=1)", PLAIN),
    "narwhals": ("import narwhals\nnarwhals.Int64", same),
}

OWN: dict[str, tuple[str, Key]] = {
    "function": ("def f(x): return x + 1\nf", called(3)),
    "lambda": ("lambda x: x * 2", called(3)),
    "closure": ("def outer(n):\n    def inner(x): return x + n\n    return inner\nouter(4)", called(3)),
    "recursive function": ("def fact(n): return n * fact(n - 1) if n else 1\nfact", called(5)),
    "generator function": ("def gen(n): yield from range(n)\ngen", lambda value: list(value(3))),
    "coroutine function": ("async def co(): return 5\nco", lambda value: __import__("asyncio").run(value())),
    "class": ("class C:\n    n = 5\nC", attributes("n")),
    "instance": ("class C:\n    def __init__(self): self.n = [5]\nC()", attributes("n")),
    "instance that is called": ("class C:\n    def __call__(self, x): return x + 1\nC()", called(3)),
    "bound method": ("class C:\n    def m(self, x): return x + 1\nC().m", called(3)),
    "class method": ("class C:\n    @classmethod\n    def m(cls, x): return x + 1\nC.m", called(3)),
    "static method": ("class C:\n    @staticmethod\n    def m(x): return x + 1\nC.m", called(3)),
    "instance with slots": ("class C:\n    __slots__ = ('n',)\n    def __init__(self): self.n = 5\nC()", attributes("n")),
    "subclass of dict": ("class D(dict): pass\nd = D(a=1)\nd.n = 5\nd", lambda value: (dict(value), value.n)),
    "subclass of list": ("class L(list): pass\nL([1])", content),
    "subclass of int": ("class I(int): pass\nI(5)", int),
    "subclass of str": ("class S(str): pass\nS('a')", str),
    "subclass of an array": (NP + "class A(np.ndarray): pass\nnp.arange(3).view(A)", lambda value: value.tolist()),
    "own exception": ("class E(Exception):\n    def __init__(self, a): super().__init__(str(a)); self.a = a\nE(3)", attributes("a", "args")),
    "partial of a function": ("import functools\ndef f(a, b): return a - b\nfunctools.partial(f, 9)", called(3)),
    "decorated function": (
        "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(*a): return g(*a) + 1\n    return w\n"
        "@deco\ndef f(x): return x\nf",
        called(3),
    ),
    "function with a submodule": ("import xml\nimport xml.etree.ElementTree\ndef f(x): return xml.etree.ElementTree.fromstring(x).tag\nf", called("<a/>")),
    "function that prints to stderr": ("import sys\ndef f(x, file=sys.stderr): return file is sys.stderr\nf", called(1)),
    "list that holds itself": ("a = [1]\na.append(a)\na", lambda value: value[1] is value),
    "object that holds a logger": (
        "import logging\nclass C:\n    def __init__(self): self.log = logging.getLogger('zoo.c')\nC()",
        lambda value: value.log.name,
    ),
    "object that holds stdout": (
        "import sys\nclass C:\n    def __init__(self): self.out = sys.stdout\nC()",
        lambda value: value.out is __import__("sys").stdout,
    ),
    "tree with weak parents": (
        "import weakref\nclass N:\n    def __init__(self, up=None):\n"
        "        self.up = up and weakref.ref(up); self.down = []\n"
        "n = N()\nn.down.append(N(n))\nn",
        lambda value: value.down[0].up() is value,
    ),
}  # fmt: skip

ZOO: dict[str, tuple[str, Key]] = {**BUILTIN, **LIBRARY, **NUMERIC, **PANDAS, **SCIENCE, **OWN}
"""All of them."""
