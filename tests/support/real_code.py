# ruff: noqa: E501 - a line is one input
"""Inputs from real programs, one line each: `tests/farm/test_real_code.py` runs every line from four places.

A row is a name, lines with definitions, an expression with `tc` (a TaskClient) and `mec` (a MultiEngineClient), and its
value.  To add an input, add a row; all rows share the names of definitions.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """One input."""

    kind: int
    name: str
    lines: str
    call: str
    value: Any


PACKAGE = {
    "realpkg/__init__.py": "",
    "realpkg/sub.py": "K = 7\nclass Item:\n    def __init__(self, n): self.n = n\n",
    "realpkg/table.txt": "one two",
    "realpkg/work.py": (
        "import importlib.resources, pkgutil\n"
        "def relative(i):\n    from .sub import K\n    return K + i\n"
        "def resource(i): return importlib.resources.files('realpkg').joinpath('table.txt').read_text()\n"
        "def data(i): return pkgutil.get_data('realpkg', 'table.txt').decode()\n"
        "def item(i):\n    from .sub import Item\n    return Item(i)\n"
        "def named(i): return __package__, __name__\n"
        "def computed(i):\n    import importlib\n    return importlib.import_module('.sub', __package__).K\n"
    ),
    "realspace/part/leaf.py": "from realspace.part.other import N\n",
    "realspace/part/other.py": "N = 11\n",
}
"""The files beside the script."""

BEGIN = """
import abc, argparse, asyncio, collections, contextlib, ctypes, dataclasses, decimal, enum, functools, itertools
import concurrent.futures, copy, logging, multiprocessing, operator, os, pickle, re, signal, subprocess, sys, time
import types, typing, warnings, weakref
import msgspec, pydantic, numpy as np, pandas as pd, xml, xml.etree.ElementTree
from pandas.api.types import is_scalar
from realpkg import sub, work
from ipytaskfarm import Farm, Ref, StringTask, Task
from ipytaskfarm.engine import current_task
T = typing.TypeVar("T"); R = typing.TypeVar("R"); P = typing.ParamSpec("P"); Ts = typing.TypeVarTuple("Ts")
BAD = "caf\\udce9"
def result(tc, function, *args, **rules): return tc.run(Task(function, args=args, **rules), block=True).result
def printed(tc, function, *args, **rules): return tc.run(Task(function, args=args, **rules), block=True).stdout
def raised(tc, function, *args):
    try: result(tc, function, *args)
    except Exception as error: return error
"""
"""Definitions that all lines may use."""

VALUES = [
    ("names of the main module", "main_value = 6\ndef by_attribute(i): return sys.modules[__name__].main_value + getattr(sys.modules[__name__], 'main_value') + i",
     "tc.map(by_attribute, [1])", [13]),
    ("a frame", "df = pd.DataFrame({'x': [1, 2, 3]})\ndef frame_at(i): return int(df.x.iloc[i])", "tc.map(frame_at, [1])", [2]),
    ("a Timestamp and NaT", "when, nat = pd.Timestamp('2024-02-29'), pd.NaT\ndef of_when(i): return when.day, nat is pd.NaT",
     "tc.map(of_when, [1])", [(29, True)]),
    ("a distribution", "from scipy.stats import norm\ndef of_norm(i): return float(norm.cdf(i))", "tc.map(of_norm, [0])", [0.5]),
    ("a Generator", "rng = np.random.default_rng(1)\ndef of_rng(i): return 0 <= float(rng.random()) < 1", "tc.map(of_rng, [0])", [True]),
    ("an estimator", "from sklearn.linear_model import LinearRegression\nmodel = LinearRegression().fit([[0], [1]], [1, 3])\n"
     "def of_model(i): return round(float(model.predict([[i]])[0]))", "tc.map(of_model, [2])", [5]),
    ("np.random.rand itself", "", "[len(a) for a in tc.map(np.random.rand, [2, 3])]", [2, 3]),
    ("a method of a frame itself", "", "[len(a) for a in tc.map(df.head, [1, 2])]", [1, 2]),
    ("a Cython function itself", "", "tc.map(is_scalar, [1, [1]])", [True, False]),
    ("a partial over a frame", "def item_of(f, i): return int(f.x[i])", "tc.map(functools.partial(item_of, df), [0])", [1]),
    ("a memoryview", "view = memoryview(b'abc')\ndef of_view(i): return view[i]", "tc.map(of_view, [0])", [97]),
    ("views of an OrderedDict", "od = collections.OrderedDict(a=1).keys()\ndef of_od(i): return list(od)", "tc.map(of_od, [0])", [["a"]]),
    ("abstractclassmethod", "class Abstract(abc.ABC):\n    @abc.abstractclassmethod\n    def make(cls): ...\n"
     "class Concrete(Abstract):\n    @classmethod\n    def make(cls): return 5\ndef of_abstract(i): return Concrete.make()",
     "tc.map(of_abstract, [0])", [5]),
    ("import xml, with xml.etree", "def of_xml(i): return xml.etree.ElementTree.fromstring('<a/>').tag", "tc.map(of_xml, [0])", ["a"]),
    ("what belongs to the process", "from os import environ\nfrom sys import modules, path, version_info\nget_variable = environ.get\n"
     "def of_process(i):\n    environ['REAL_OWN'] = '5'\n    shown = subprocess.run('echo $REAL_OWN', shell=True, capture_output=True, text=True).stdout.strip()\n"
     "    return environ is os.environ, get_variable('IPYTASKFARM_ENGINE') is not None, shown, version_info >= (3, 11), path is sys.path, 'json' in modules",
     "tc.map(of_process, [1]), 'REAL_OWN' in os.environ", ([(True, True, "5", True, True, True)], False)),
    ("chance of the system, limits of floats", "from secrets import choice\neps = np.finfo(float)\ndef of_chance(i): return choice([i]), float(eps.eps) > 0",
     "tc.map(of_chance, [1])", [(1, True)]),
    ("weak sets and dictionaries", "class Held: pass\nheld = Held()\nweak = weakref.WeakSet([held])\n"
     "weakkeys = weakref.WeakKeyDictionary({held: 3})\ndef of_weak(i): return len(weak), list(weakkeys.values())",
     "tc.map(of_weak, [0])", [(1, [3])]),
    ("a default file=sys.stderr", "def of_file(i, file=sys.stderr): return file is sys.stderr", "tc.map(of_file, [0])", [True]),
    ("an object that holds sys.stdout", "class Holds:\n    def __init__(self): self.out, self.log = sys.stdout, logging.StreamHandler()\n"
     "holds = Holds()\ndef of_holds(i): return holds.out is sys.stdout and holds.log is not None", "tc.map(of_holds, [0])", [True]),
    ("singledispatch", "@functools.singledispatch\ndef kind(x): return 'any'\n@kind.register\ndef _(x: int): return 'int'",
     "tc.map(kind, [1, 'a'])", ["int", "any"]),
    ("a recursive lru_cache", "@functools.lru_cache\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)", "tc.map(fib, [10])", [55]),
    ("np.vectorize and a ufunc", "vec = np.vectorize(lambda x: x + 1)\nuf = np.negative\n"
     "def of_vec(i): return int(vec(i)), int(uf(i))", "tc.map(of_vec, [3])", [(4, -3)]),
    ("methods of builtins themselves", "", "tc.map('-'.join, [['a', 'b']]) + tc.map(str.upper, ['a']) + tc.map(operator.itemgetter(1), ['ab'])",
     ["a-b", "A", "b"]),
    ("a groupby", "groups = pd.DataFrame({'k': [1, 1], 'v': [2, 3]}).groupby('k')\ndef of_groups(i): return int(groups.v.sum().iloc[0])",
     "tc.map(of_groups, [0])", [5]),
    ("a value in a class", "class Keeps:\n    frame = df\n    def at(self, i): return int(self.frame.x[i])", "tc.map(Keeps().at, [2])", [3]),
]  # fmt: skip

CLASSES = [
    ("a bound classmethod in a class", "class Shape:\n    @classmethod\n    def square(cls): return cls.__name__\nShape.makers = {'s': Shape.square}\n"
     "def of_shape(i): return Shape.makers['s']()", "tc.map(of_shape, [0])", ["Shape"]),
    ("a constant of its own type", "@dataclasses.dataclass(slots=True, frozen=True)\nclass Vec:\n    x: int\n    y: int\nVec.ZERO = Vec(0, 0)\n"
     "def of_vec_zero(i): return Vec.ZERO", "tc.map(of_vec_zero, [0])[0] == Vec(0, 0)", True),
    ("its own __new__", "class New:\n    def __new__(cls, n): self = object.__new__(cls); self.n = n; return self\n    def __getnewargs__(self): return (self.n,)\n"
     "New.one = New(1)\ndef of_new(i): return New.one.n + i.n", "tc.map(of_new, [New(2)])", [3]),
    ("its own __setstate__", "class State:\n    def __init__(self): self.m = 4\n    def __getstate__(self): return {'n': 4}\n    def __setstate__(self, s): self.m = s['n']\nState.some = State()\n"
     "def of_state(i): return State.some.m", "tc.map(of_state, [0])", [4]),
    ("keys with a __hash__ of their own", "class Key:\n    def __init__(self, k): self.k = k\n    def __hash__(self): return hash(self.k)\n"
     "    def __eq__(self, o): return self.k == o.k\nKey.all = {Key(1)}; Key.named = {Key(2): 'b'}\n"
     "def of_key(i): return Key(1) in Key.all, Key.named[Key(2)], Key(3) in i", "tc.map(of_key, [{Key(3)}])", [(True, "b", True)]),
    ("metaclass keywords and a check of the body", "class Meta(type):\n    def __new__(m, n, b, d, tag=''):\n        assert 'must' in d\n"
     "        c = super().__new__(m, n, b, d); c.tag = tag; return c\n    def __init__(c, n, b, d, tag=''): super().__init__(n, b, d)\n"
     "class Tagged(metaclass=Meta, tag='t'):\n    must = 1\ndef of_meta(i): return Tagged.tag, type(Tagged) is Meta", "tc.map(of_meta, [0])", [("t", True)]),
    ("msgspec.Struct", "class Msg(msgspec.Struct, frozen=True):\n    a: int\n    b: list[int] = []", "tc.map(Msg, [1])[0] == Msg(1)", True),
    ("ctypes.Structure", "class C(ctypes.Structure):\n    _fields_ = [('x', ctypes.c_int)]\ndef of_c(i): return C(i).x", "tc.map(of_c, [3])", [3]),
    ("ParamSpec and Generic", "class Call(typing.Generic[P, R]):\n    def __init__(self, f: typing.Callable[P, R]): self.f = f\n"
     "    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: return self.f(*args, **kwargs)", "tc.map(Call[[int], int](abs), [-3])", [3]),
    ("TypeVarTuple", "class Many(typing.Generic[typing.Unpack[Ts]]):\n    n = 2\ndef of_many(i): return Many[int, str].n", "tc.map(of_many, [0])", [2]),
    ("names in annotations", "class Node:\n    next: 'Node | None' = None\ndef of_node(i): return typing.get_type_hints(Node)['next'] == typing.Optional[Node]",
     "tc.map(of_node, [0])", [True]),
    ("names inside of annotations", "class Leaf: pass\nclass Tree:\n    up: typing.Optional['Tree']\n    leaves: dict[str, 'Leaf']\n"
     "def of_tree(i: typing.Optional['Leaf']): return typing.get_type_hints(Tree), typing.get_type_hints(of_tree)['i']",
     "[str(each).replace('__main__.', '') for each in tc.map(of_tree, [0])[0]]",
     ["{'up': typing.Optional[Tree], 'leaves': dict[str, Leaf]}", "typing.Optional[Leaf]"]),
    ("pydantic", "class Model(pydantic.BaseModel):\n    a: int\n    @pydantic.field_validator('a')\n    @classmethod\n    def double(cls, v): return 2 * v",
     "tc.map(functools.partial(Model.model_validate), [{'a': 2}])[0].a", 4),
    ("enumerations", "class Colour(enum.Enum):\n    RED = 1\n    def low(self): return self.name.lower()\nclass Flags(enum.Flag):\n    A = enum.auto()\n    B = enum.auto()\n"
     "def of_colour(c): return c.low(), c is Colour.RED, (Flags.A | Flags.B).value", "tc.map(of_colour, [Colour.RED])", [("red", True, 3)]),
    ("__init_subclass__ and __set_name__", "class Reg:\n    seen = {}\n    def __init_subclass__(cls, key, **k): super().__init_subclass__(**k); Reg.seen[key] = cls\n"
     "class Named:\n    def __set_name__(self, o, n): self.n = n\n    def __get__(self, o, t): return self.n\nclass One(Reg, key='one'):\n    attr = Named()\n"
     "def of_reg(i): return Reg.seen['one'] is One, One.attr", "tc.map(of_reg, [0])", [(True, "attr")]),
    ("protocols and named tuples", "@typing.runtime_checkable\nclass Has(typing.Protocol):\n    def go(self): ...\nclass Goes:\n    def go(self): return 1\n"
     "class Pair(typing.NamedTuple):\n    a: int\n    b: int = 2\ndef of_has(i): return isinstance(Goes(), Has), tuple(Pair(i))", "tc.map(of_has, [1])", [(True, (1, 2))]),
    ("dataclasses with factories", "@dataclasses.dataclass(kw_only=True, order=True)\nclass D:\n    a: int\n    b: list = dataclasses.field(default_factory=list)\n"
     "def of_d(i): return dataclasses.asdict(dataclasses.replace(i, a=2)), D(a=1) < D(a=2)", "tc.map(of_d, [D(a=1)])", [({"a": 2, "b": []}, True)]),
    ("instances that fill a table, made by __reduce__", "class Interned:\n    known = {}\n    weak = weakref.WeakValueDictionary()\n    def __new__(cls, k):\n"
     "        if k not in cls.known: self = cls.known[k] = cls.weak[k] = object.__new__(cls); self.k = k\n        return cls.known[k]\n"
     "    def __reduce__(self): return Interned, (self.k,)\nthe_one = Interned(1)\n"
     "def of_interned(i): return Interned(1) is the_one, i.k, Interned.weak[1] is the_one, sorted(Interned.known)", "tc.map(of_interned, [the_one])", [(True, 1, True, [1])]),
    ("a single instance, made by __reduce__", "class Single:\n    only = None\n    def __new__(cls):\n        if cls.only is None: cls.only = object.__new__(cls)\n"
     "        return cls.only\n    def __reduce__(self): return Single, ()\nTABLE = {}\ndef entry(k):\n    if k not in TABLE: TABLE[k] = Entry(k)\n    return TABLE[k]\n"
     "class Entry:\n    def __init__(self, k): self.k = k\n    def __reduce__(self): return entry, (self.k,)\nsingle, first = Single(), entry(1)\n"
     "def of_single(i): return Single() is single, entry(1) is first, list(TABLE)", "tc.map(of_single, [1])", [(True, True, [1])]),
    ("registered as a Sequence", "@collections.abc.Sequence.register\nclass Virtual: pass\ndef of_virtual(i): return isinstance(Virtual(), collections.abc.Sequence)",
     "tc.map(of_virtual, [1])", [True]),
    ("context variables", "import contextvars\nlevel = contextvars.ContextVar('level', default=1)\nunset = contextvars.ContextVar('unset')\nclass Scope:\n    now = contextvars.ContextVar('now', default=None)\n"
     "    def __enter__(self): self.token = self.now.set(self); return self\n    def __exit__(self, *error): self.now.reset(self.token)\ndef of_level(v):\n    had = level.get(); token = level.set(5)\n"
     "    with Scope() as scope: inside = v.get(), v is level, Scope.now.get() is scope\n    level.reset(token); return had, *inside, level.get(), unset.get('none'), Scope.now.get()",
     "tc.map(of_level, [level]), tc.map(lambda i: level, [1])[0] is level", ([(1, 5, True, True, 1, "none", None)], True)),
    ("cached properties and super", "class Up:\n    @functools.cached_property\n    def v(self): return [1]\nclass Down(Up):\n    @property\n    def w(self): return super().v + [2]\n"
     "def of_down(i): return i.w", "tc.map(of_down, [Down()])", [[1, 2]]),
]  # fmt: skip

CODE = [
    ("a class that submits its own steps", "class Program:\n    def __init__(self, k): self.k = k\n    def step(self, i): return self.k * i\n    def run(self): return CLIENT.map(self.step, [1, 2])\n"
     "def programs(tc):\n    global CLIENT\n    CLIENT = tc\n    return Program(3).run()", "programs(tc)", [3, 6]),
    ("a relative import in a function", "", "tc.map(work.relative, [1])", [8]),
    ("importlib.resources", "", "tc.map(work.resource, [1])", ["one two"]),
    ("pkgutil.get_data", "", "tc.map(work.data, [1])", ["one two"]),
    ("an instance of a class of a package", "", "type(tc.map(work.item, [1])[0]) is sub.Item", True),
    ("the package's name", "", "tc.map(work.named, [1])", [("realpkg", "realpkg.work")]),
    ("a computed import", "", "tc.map(work.computed, [1])", [7]),
    ("packages without __init__", "def of_space(i):\n    from realspace.part.leaf import N\n    return N", "tc.map(of_space, [1])", [11]),
    ("numpy by name", "from ipytaskfarm.serialization.pack import pack", "len(pack(np.arange(4))) <= 1000", True),
    ("a compiled module of the package", "def of_compiled(i):\n    from realpkg import xxlimited\n    return xxlimited.foo(i, 2), xxlimited.__name__",
     "tc.map(of_compiled, [1])", [(3, "realpkg.xxlimited")]),
    ("an import inside a method", "class Lazy:\n    def go(self, i):\n        import realpkg.sub as s\n        return s.K + i", "tc.map(Lazy().go, [1])", [8]),
]  # fmt: skip

CHILDREN = [
    ("a pool", "def square(x): return x * x\ndef in_pool(method):\n    with multiprocessing.get_context(method).Pool(1) as p: return p.map(square, [2])",
     "tc.map(in_pool, ['fork', 'spawn', 'forkserver'])", [[4], [4], [4]]),
    ("an executor", "def in_executor(x):\n    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as e: return list(e.map(square, [x]))",
     "tc.map(in_executor, [3])", [[9]]),
    ("pickle in a task", "class Pt:\n    def __init__(self, x): self.x = x\ndef pickles(x):\n    p = pickle.loads(pickle.dumps(Pt(x)))\n    return p.x, type(p) is Pt",
     "tc.map(pickles, [3])", [(3, True)]),
    ("joblib", "def with_joblib(x):\n    import joblib\n    return joblib.Parallel(2, backend='multiprocessing')(joblib.delayed(square)(i) for i in (1, x))",
     "tc.map(with_joblib, [3])", [[1, 9]]),
    ("subprocess", "def by_command(i):\n    k = sub.K\n    code = 'from realpkg.sub import K; print(K)'\n"
     "    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout", "tc.map(by_command, [1])", ["7\n"]),
    ("deepcopy and a class by its name", "def copied(i): return type(copy.deepcopy(Pt(i))) is Pt, getattr(sys.modules[Pt.__module__], 'Pt') is Pt",
     "tc.map(copied, [3])", [(True, True)]),
    ("a process and a queue", "def put(q, x): q.put(Pt(x))\ndef with_queue(x):\n    c = multiprocessing.get_context('fork'); q = c.Queue()\n"
     "    p = c.Process(target=put, args=(q, x)); p.start(); v = q.get(timeout=20).x; p.join(); return v", "tc.map(with_queue, [3])", [3]),
    ("a submitted bound method", "def bound(x):\n    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as e:\n"
     "        return e.submit(Adds(1).to, x).result()\nclass Adds:\n    def __init__(self, n): self.n = n\n    def to(self, x): return self.n + x", "tc.map(bound, [3])", [4]),
]  # fmt: skip

TEXT = [
    ("printed", "def prints(i): print(BAD); return i", "tc.map(prints, [1])", [1]),
    ("logged", "def logs(i): logging.warning(BAD); return i", "tc.map(logs, [1])", [1]),
    ("a name", "", "result(tc, abs, -1, name=BAD), len(tc.tasks(name=BAD)) > 0", (1, True)),
    ("a group, and a unique name", "",
     "[result(tc, abs, -1, **rule) for rule in ({'group': BAD}, {'unique': BAD})]", [1, 1]),
    ("a job's name", "def of_job(tc):\n    j = tc.create_job(BAD)\n    t = j.add_task(Task(abs, args=(-2,)))\n    j.submit(); j.wait()\n    return 1", "of_job(tc)", 1),
    ("progress", "def says(i): current_task().progress(0.5, message=BAD); return i", "tc.map(says, [1])", [1]),
    ("raised", "def raises(i): raise ValueError(BAD)", "str(raised(tc, raises, 1)) in (BAD, 'caf\\\\udce9')", True),
    ("returned, and a key", "def returns(i): return {BAD: BAD}", "tc.map(returns, [1]) == [{BAD: BAD}]", True),
    ("warned, and a variable", "def warns(i): warnings.warn(BAD); os.environ['REAL_CODE'] = BAD; return i", "tc.map(warns, [1])", [1]),
    ("requires", "", "result(tc, abs, -1, requires={'hostname': '!= ' + BAD})", 1),
    ("an abort's reason", "def aborts(tc):\n    t = tc.run(Task(abs, args=(-1,), requires={'property:never': 1})); tc.abort([t], reason=BAD)\n"
     "    try: tc.get_task_result(t, block=True)\n    except Exception as error: return 'udce9' in str(error)", "aborts(tc)", True),
    ("a child's name", "def names_child(i):\n    job = current_task().create_job(BAD); job.add_task(Task('b = 1', name=BAD)); job.submit(); return job.wait()",
     "tc.map(names_child, [1])", [0]),
    ("a message", "def posts(i): current_task().send({BAD: BAD}); return i", "(lambda t: (t.result, [m.value for m in tc.messages(t.taskid)] == [{BAD: BAD}]))(tc.run(Task(posts, args=(1,)), block=True))", (1, True)),
    ("a folder's name", "def makes(i):\n    import tempfile\n    with tempfile.TemporaryDirectory(suffix=BAD) as d: os.chdir(d); print(os.getcwd()); return i",
     "tc.map(makes, [1])", [1]),
]  # fmt: skip

SURROUNDINGS = [
    ("the folder of items", "def goes(i):\n    before = os.getcwd(); os.chdir('/usr'); return before != '/usr'", "all(tc.map(goes, range(50)))", True),
    ("variables of items", "def sets(i): had = 'REAL_A' in os.environ; os.environ['REAL_A'] = '1'; return had", "any(tc.map(sets, range(50)))", False),
    ("umask", "def masks(i):\n    before = os.umask(0); return before", "len(set(tc.map(masks, range(9)))), masks(0) is not None", (1, True)),
    ("arguments", "def parses(i):\n    p = argparse.ArgumentParser(); p.add_argument('--n', default=3); return p.parse_args().n", "tc.map(parses, [1])", [3]),
    ("an alarm", "def alarms(i): signal.alarm(1); return i\ndef waits(i): time.sleep(1.2); return i", "result(tc, alarms, 1), result(tc, waits, 2)", (1, 2)),
    ("a name that hides a builtin", "def sums(i): return sum([i, 1])", "tc.run(StringTask('sum = 0'), block=True).failure, tc.map(sums, [1, 2])", (None, [2, 3])),
    ("asyncio.run", "async def later(i): await asyncio.sleep(0); return i\ndef runs(i): return asyncio.run(later(i))", "tc.map(runs, [1])", [1]),
    ("a loop of its own", "def loops(i):\n    loop = asyncio.new_event_loop()\n    try: return loop.run_until_complete(later(i))\n    finally: loop.close()",
     "tc.map(loops, [1])", [1]),
    ("threads of BLAS", "def threads(i): return int(os.environ['OMP_NUM_THREADS']) <= max(1, os.cpu_count() // 2)", "tc.map(threads, [1])", [True]),
    ("decimals, numpy's errors, recursion", "def changes(i):\n    had = decimal.getcontext().prec, np.geterr()['divide'], sys.getrecursionlimit()\n"
     "    decimal.getcontext().prec = 3; np.seterr(divide='raise'); sys.setrecursionlimit(5000); return had", "len(set(tc.map(changes, range(20))))", 1),
    ("handlers, filters and sys.path", "def more(i):\n    had = signal.getsignal(signal.SIGUSR1), len(warnings.filters), len(sys.path)\n"
     "    signal.signal(signal.SIGUSR1, signal.SIG_IGN); warnings.simplefilter('error'); sys.path.append('/x'); return repr(had)",
     "len({tc.run(Task(more, args=(1,), targets=0), block=True).result for _ in range(3)})", 1),
    ("what children inherit", "def inherits(i): return [os.environ.get(v) for v in ('MPLBACKEND', 'FORCE_COLOR', 'PAGER')] == [None, None, None]",
     "tc.map(inherits, [1]) if not os.environ.keys() & {'MPLBACKEND', 'FORCE_COLOR', 'PAGER'} else [True]", [True]),
]  # fmt: skip

OUTPUT = [
    ("a parser's complaint", "def parses_more():\n    p = argparse.ArgumentParser(prog='p'); p.add_argument('n'); p.parse_args()",
     "(lambda e: 'required: n' in ''.join(e.__notes__))(raised(tc, parses_more))", True),
    ("a value that cannot be made again", "class Two(tuple):\n    def __new__(cls, a, b): return super().__new__(cls, (a, b))\n    def __reduce__(self): return Two, (1,)\ndef takes(t): return len(t)",
     "(lambda e: (type(e).__name__, 'arguments were rebuilt' in ''.join(e.__notes__)))(raised(tc, takes, Two(1, 2)))", ("TypeError", True)),
    ("in order", "def speaks(): print('a'); subprocess.run(['echo', 'b']); os.write(1, b'c\\n'); print('d')", "printed(tc, speaks)", "a\nb\nc\nd\n"),
    ("the stream", "def streams():\n    sys.stdout.reconfigure(line_buffering=True); sys.stdout.buffer.write(b'x'); sys.stdout.flush(); return isinstance(sys.stdout.errors, str)",
     "result(tc, streams)", True),
    ("tqdm", "def bars():\n    from tqdm.auto import tqdm\n    for _ in tqdm(range(5)): pass", "'5/5' in tc.run(Task(bars), block=True).stderr", True),
    ("of items", "def item_speaks(i): print('item', i); return i", "list(tc.map(item_speaks, [5, 6]).stdout)", ["item 5\n", "item 6\n"]),
    ("cause and notes", "class Own(Exception):\n    def __init__(self, a, b): super().__init__(a, b); self.b = b\ndef fails():\n    try: 1 / 0\n"
     "    except ZeroDivisionError as e:\n        o = Own(1, 2); o.add_note('seen'); raise o from e",
     "(lambda e: (type(e) is Own, e.b, type(e.__cause__).__name__, 'seen' in e.__notes__, 'fails' in e.remote_traceback))(raised(tc, fails))",
     (True, 2, "ZeroDivisionError", True, True)),
    ("CalledProcessError", "def calls(): subprocess.run(['false'], check=True)", "(lambda e: (type(e).__name__, e.returncode))(raised(tc, calls))", ("CalledProcessError", 1)),
    ("attributes that cannot travel", "class Locked(Exception):\n    pass\ndef locks():\n    import threading\n    e = Locked('l'); e.lock = threading.Lock(); e.big = bytes(10**6); raise e",
     "(lambda e: (type(e) is Locked, str(e)))(raised(tc, locks))", (True, "l")),
    ("groups and contexts", "def groups_of():\n    try: {}['k']\n    except KeyError: raise ExceptionGroup('g', [ValueError('v'), Own(3, 4)])",
     "(lambda e: ([type(x).__name__ for x in e.exceptions], type(e.__context__).__name__))(raised(tc, groups_of))", (["ValueError", "Own"], "KeyError")),
    ("logging to stdout", "def basic():\n    logging.basicConfig(stream=sys.stdout, format='%(message)s'); print('a'); logging.warning('b'); os.system('echo c')",
     "printed(tc, basic), printed(tc, basic)", ("a\nb\nc\n", "a\nb\nc\n")),
    ("redirected", "def redirects():\n    import io\n    with contextlib.redirect_stdout(io.StringIO()) as f: print('x')\n    print(f.getvalue(), end='')", "printed(tc, redirects)", "x\n"),
    ("a dead end of a chain", "def deep():\n    try: raise OSError(2, 'no', 'f')\n    except OSError as e: raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'r') from e",
     "(lambda e: (e.reason, e.__cause__.errno, e.__cause__.filename))(raised(tc, deep))", ("r", 2, "f")),
]  # fmt: skip

MANY = [
    ("an endless iterable", "def adds(a, b): return a + b", "tc.map(adds, range(3), itertools.repeat(1))", [1, 2, 3]),
    ("imap of endless iterables", "", "list(itertools.islice(tc.imap(adds, itertools.count(), itertools.repeat(1)), 4))", [1, 2, 3, 4]),
    ("a fan-in", "def total(parts): return sum(parts)", "result(tc, total, [Ref(tc.run(Task(abs, args=(-i,)))) for i in range(300)])", 44850),
    ("an imap that is left", "def leaves(tc):\n    for v in tc.imap(abs, range(100)): break\n    return v", "leaves(tc), tc.map(abs, [-1])", (0, [1])),
    ("an item that raises", "def bad(i): return 1 // (i - 3)", "type(raised(tc, bad, 3)).__name__, tc.map(abs, [-1])", ("ZeroDivisionError", [1])),
    ("scatter and gather of a Series", "", "(mec.scatter('s', pd.Series([1, 2, 3], index=list('abc'), dtype='int8')), mec.gather('s'))[1].to_dict()",
     {"a": 1, "b": 2, "c": 3}),
    ("generators, and nothing", "", "tc.map(abs, (-i for i in range(3))), tc.map(abs, [])", ([0, 1, 2], [])),
    ("held results of 66 KB", "def large(i): return np.full(8300, float(i))", "(lambda held: sum(float(h[-1]) for h in held))(tc.map(large, range(300)))", 44850.0),
]  # fmt: skip

ODD = [
    ("a working folder that is gone", "def from_nowhere(tc):\n    import tempfile\n    here = os.getcwd(); d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)\n"
     "    try: return tc.map(square, [2])\n    finally: os.chdir(here)", "from_nowhere(tc)", [4]),
    ("no USER and no HOME", "def nameless(tc):\n    kept = dict(os.environ)\n    for n in ('USER', 'LOGNAME', 'HOME'): os.environ.pop(n, None)\n"
     "    try: return tc.map(square, [3])\n    finally: os.environ.update(kept)", "nameless(tc)", [9]),
    ("a home that cannot be written", "def homeless(tc):\n    kept = dict(os.environ); os.environ['HOME'] = '/proc/1/nothing'\n"
     "    try: return tc.map(square, [5])\n    finally: os.environ.update(kept)", "homeless(tc)", [25]),
    ("a farm of its own without a home", "def own_farm():\n    kept = dict(os.environ); os.environ['HOME'] = '/proc/1/nothing'\n"
     "    for n in ('USER', 'LOGNAME'): os.environ.pop(n, None)\n    try:\n        with Farm(n=1) as farm, farm.task_client() as own: return own.map(square, [6])\n"
     "    finally: os.environ.clear(); os.environ.update(kept)", "own_farm()", [36]),
    ("standard streams that are None", "def silent(tc):\n    kept = sys.stdin, sys.stdout; sys.stdin = sys.stdout = None\n    try: return tc.map(square, [4])\n"
     "    finally: sys.stdin, sys.stdout = kept", "silent(tc)", [16]),
]  # fmt: skip

KINDS: list[list[Any]] = [VALUES, CLASSES, CODE, CHILDREN, TEXT, SURROUNDINGS, OUTPUT, MANY, ODD]
ROWS = [Row(kind, *row) for kind, rows in enumerate(KINDS, 1) for row in rows]
