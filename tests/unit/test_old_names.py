"""Names, keywords and code of old programs that mean nothing, or something else, here: what each of them is told."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

import ipytaskfarm.ipyparallel as ipp
from ipytaskfarm import MapTask, StringTask, Task, client, errors
from ipytaskfarm.client import engine_maps, python2, task_arguments
from ipytaskfarm.client.commands import PendingResult
from ipytaskfarm.client.old_names import ARGUMENTS, GONE, old_keywords
from ipytaskfarm.client.results import Failure


@pytest.fixture(autouse=True)
def _nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python2, "_told", set())
    monkeypatch.setattr(python2, "_on_engines", {})
    monkeypatch.setattr(python2, "_old", {})
    monkeypatch.setattr(task_arguments, "_told_of", set())


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Return a function that returns the lines on standard error since the last call."""
    return lambda: capsys.readouterr().err.splitlines()


Lines: TypeAlias = Callable[[], list[str]]


# -- code that means something else


@pytest.mark.parametrize(
    ("code", "names", "wanted"),
    [
        ("a = 1/2", {}, "'1 / 2' is 0.5 in Python 3, and was 0 in Python 2: // divides as then"),
        ("a = n/2", {"n": 5}, "'n / 2' is 2.5 in Python 3, and was 2"),
        ("n = 7; a = (n + 1)/3", {}, "is 2.66667 in Python 3, and was 2"),
        ("a = -7/2", {}, "is -3.5 in Python 3, and was -4"),
        ("n = 5\nn /= 2", {}, "'n /= 2' is 2.5"),
        ("a, b = 5, 2\nc = a/b", {}, "'a / b' is 2.5"),
        ("for i in range(9): x = i/2", {}, "'i / 2' is a fraction in Python 3"),
        ("m = len(x)/2", {}, "is a fraction in Python 3"),
        ("n = 4\nwhile n > 1: n = n/2", {}, "'n / 2' is a fraction"),
        ("def half(n): return n/2", {}, "'n / 2' of whole numbers is a fraction"),
        ("m = sum(x)/len(x)", {"x": [1, 2]}, "of whole numbers is a fraction"),
        ("print", {}, "prints nothing"),
        ("print (1), 2", {}, "prints only its first value"),
        ("exec('x = 1') in {}", {}, "runs in the engine's own namespace"),
        ("print(1),", {}, "print(a, end=' ')"),
        ("round(2.5)", {}, "round(2.5)"),
        ("class A:\n    def __nonzero__(self): return False", {}, "does nothing in Python 3: __bool__"),
        ("class A:\n    __metaclass__ = type", {}, "class A(metaclass=M)"),
    ],
)
def test_code_that_computes_something_else_is_told(code: str, names: dict[str, Any], wanted: str, lines: Lines) -> None:
    python2.tell_of_code(code, names)
    (text,) = lines()
    assert wanted in text
    assert "docs/migrating.md" in text
    assert f"{__file__}:" in text
    python2.tell_of_code(code, names)
    assert lines() == [], "once"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("a = 10/5", {}),
        ("a = n/4", {"n": 8}),
        ("a = n/2", {"n": 5.0}),
        ("a = 1.0*n/2", {}),
        ("a = float(n)/m", {}),
        ("a = 2*math.pi/n", {}),
        ("a = 5//2", {}),
        ("from __future__ import division\na = 1/2", {}),
        ("a = 1/0", {}),
        ("open('/tmp/a')", {}),
        ("print(1, 2)", {}),
        ("%time a = 1/2", {}),
        ("a = = 1/2", {}),
        ("exec('x = 1', {})", {}),
        ("round(2.567, 1)", {}),
    ],
)
def test_code_that_means_the_same_is_not(code: str, names: dict[str, Any], lines: Lines) -> None:
    python2.tell_of_code(code, names)
    assert lines() == []


def test_names_that_were_placed_on_engines_are_known_later(lines: Lines) -> None:
    python2.note_names({"n": 5, "x": 2.0})
    python2.tell_of_code("m = 2", keep=True)
    assert lines() == []
    python2.tell_of_code("a = n/m", keep=True)
    assert "was 2 in" in lines()[0]
    python2.tell_of_code("b = x/m")
    assert lines() == []


def test_a_loop_of_texts_is_told_of_a_few_times(lines: Lines) -> None:
    for n in range(3, 50, 2):
        python2.tell_of_code(f"a = {n}/2")
    assert len(lines()) == 5


def test_programs_without_the_old_names_are_not_told(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace())
    program = {"tell": python2.tell_of_code, "__name__": "new"}
    exec("tell('a = 1/2')", program)
    assert lines() == []
    exec("from ipytaskfarm import *\ntell('a = 1/2')", program)
    assert lines() == [], "the old names came with all others"
    for name in ("client", "StringTask", "Task"):
        del program[name]
    program["MapTask"] = MapTask
    exec("tell('a = 1/2')", program)
    assert len(lines()) == 1


def test_a_task_and_its_numbers(lines: Lines) -> None:
    StringTask("a = n/2", push={"n": 5})._pack(None)
    assert "'n / 2' is 2.5" in lines()[0]


def test_iterators_that_were_lists_are_told_or_joined(lines: Lines) -> None:
    python2.tell_of_iterators({"y": map(abs, [1]), "z": [1]})
    assert "'y' is a map object, which can be read only once: list(map(…)) makes a list" in lines()[0]
    found = [map(abs, [-1, -2]), filter(None, [3]), zip([4], [5], strict=True), {6: 7}.keys(), range(8, 9), [9]]
    assert engine_maps.joined(found) == [1, 2, 3, (4, 5), 6, 8, 9]


# -- errors of Python 2


def failing(code: str) -> BaseException:
    try:
        exec(compile(code, "<task>", "exec"), {})
    except Exception as error:
        return error
    raise AssertionError(f"{code} has not failed")


@pytest.mark.parametrize(
    ("code", "form"),
    [
        ("print a", "print(a)"),
        ("print 'a'; b = 1", "print(a)"),
        ("exec 'a'", "exec(code)"),
        *(
            [("try: pass\nexcept ValueError, e: raise", "except ValueError as error")]
            if sys.version_info < (3, 14)  # which takes it as `except (ValueError, e)`
            else []
        ),
        ("raise ValueError, 'text'", "ValueError('text')"),
        ("raise 'text'", "Exception('text')"),
        ("a = 0777", "0o777"),
        ("a = 10L", "have no L"),
        ("a = 0xFFL", "have no L"),
        ("1 <> 2", "!="),
        ("a = `5`", "repr(x)"),
        ("a = ur'x'", "r'…'"),
        ("f = lambda (a, b): a", "a parameter is one name"),
        ("def f(x, (a, b)): pass", "a parameter is one name"),
        ("xrange(3)", "range"),
        ("unicode('a')", "str"),
        ("reduce(max, [1])", "functools.reduce"),
        ("{}.has_key(1)", "key in d"),
        ("{}.iteritems()", "d.items()"),
        ("iter([]).next()", "next(iterator)"),
        ("'a'.decode('utf8')", "only bytes"),
        ("'a'.encode('hex')", "codecs.encode"),
        ("import string; string.join(['a'])", "s.join"),
        ("import sys; sys.maxint", "sys.maxsize"),
        ("import urllib; urllib.urlencode({})", "urllib.parse.urlencode"),
        ("import os; os.popen3('ls')", "os.popen3 is subprocess.Popen"),
        ("import types; types.ListType", "types.ListType is list"),
        ("import inspect; inspect.getargspec(len)", "inspect.getfullargspec"),
        ("import collections; collections.Mapping", "collections.abc.Mapping"),
        ("range(6 / 2)", "// divides as in Python 2"),
        ("[0] * (6 / 2)", "// divides as in Python 2"),
        ("x = [1, 2]; x[2 / 2]", "// divides as in Python 2"),
        ("x = [1, 2]; x[: 2 / 2]", "// divides as in Python 2"),
        ("import numpy; numpy.zeros(6 / 2)", "// divides as in Python 2"),
        ("b'a' + 'b'", "text.encode() makes bytes"),
        ("'a' + b'b'", "text.encode() makes bytes"),
        ("class A:\n def __iter__(self): return self\n def next(self): return 1\niter(A())", "__next__"),
        ("import cPickle", "pickle"),
        ("from urllib2 import urlopen", "urllib.request"),
        ("len(map(abs, [1]))", "list(map(…))"),
        ("{1: 2}.keys()[0]", "list(dict.keys(…))"),
        ("range(3) + [4]", "list(range(…))"),
        ("range(3).append(4)", "list(range(…))"),
        ("{}.keys().sort()", "list(dict.keys(…))"),
        ("sorted([1], lambda a, b: 0)", "cmp_to_key"),
        ("1 < 'a'", "cannot be compared"),
        ("None < 1", "cannot be compared"),
        ("[1].sort(lambda a, b: 0)", "cmp_to_key"),
        ("import sys; print >>sys.stderr, 1", "file=file"),
        ("import IPython.kernel.error", "from ipytaskfarm.errors import TaskRejectError"),
        ("from IPython.kernel import client", "from ipytaskfarm import client"),
        ("from IPython.parallel import Client", "ipytaskfarm.ipyparallel here"),
        ("raise ModuleNotFoundError('none', name='ipyparallel')", "ipytaskfarm.ipyparallel here"),
        ("object().defer", "current_task().defer"),
    ],
)
def test_errors_of_python_2_have_the_form_of_python_3(code: str, form: str) -> None:
    error = failing(code)
    python2.add_remedy(error)
    python2.add_remedy(error)
    (note,) = error.__notes__
    assert form in note


@pytest.mark.parametrize(
    "code",
    ["a = = 1", "nothing", "object().name", "import nothing_of_that_name", "1 + 'a'", "[1].joinfields", "{}[1]", "1/0"],
)
def test_other_errors_have_no_such_note(code: str) -> None:
    error = failing(code)
    python2.add_remedy(error)
    assert not hasattr(error, "__notes__")


# -- names and keywords


@pytest.mark.parametrize("name", ["task", "taskclient", "multiengine", "multiengineclient", "engineservice"])
def test_old_modules_have_the_names_of_ours(name: str) -> None:
    found = importlib.import_module(f"ipytaskfarm.{name}")
    assert found.get_engine if name == "engineservice" else found.StringTask is StringTask


@pytest.mark.parametrize(
    ("statement", "remedy"),
    [
        ("import ipytaskfarm.magic", "mec.activate"),
        ("from ipytaskfarm import asyncclient", "await"),
        ("from ipytaskfarm.contexts import remote", "mec.execute"),
        ("from ipytaskfarm.client import remote", "mec.execute"),
        ("from ipytaskfarm.task import FIFOScheduler", "policies"),
        ("from ipytaskfarm.client import ClusterJobScheduler", "TaskClient"),
        ("from ipytaskfarm import CoreLoadJob", "execute"),
        ("from ipytaskfarm import Client", "ipyparallel as ipp"),
        ("from ipytaskfarm.kernel import client", "from ipytaskfarm import client"),
        ("from ipytaskfarm.parallel import Client", "ipyparallel as ipp"),
        ("from ipytaskfarm.ipyparallel.joblib import register", "register_joblib_backend"),
        ("import ipytaskfarm.ipyparallel.serialize", "delete this import"),
    ],
)
def test_imports_of_what_is_gone_say_what_to_write(statement: str, remedy: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=remedy):
        exec(statement, {})


def test_modules_of_ipyparallel_have_the_names_of_ours() -> None:
    names: dict[str, Any] = {}
    exec("from ipytaskfarm.ipyparallel import *", names)
    assert set(ipp.__all__) <= names.keys()
    for module, name in {"client.view": "DirectView", "client": "Client", "controller.dependency": "depend"}.items():
        exec(f"from ipytaskfarm.ipyparallel.{module} import {name} as found", names)
        assert names["found"] is getattr(ipp, name)
    with pytest.raises(TypeError, match="'sshserver'; instead: `ipytaskfarm keys add"):
        ipp.Client(sshserver="me@there")


def test_names_that_never_were_are_not_found_as_ever() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from ipytaskfarm import nothing", {})
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'ipytaskfarm\.nothing'"):
        importlib.import_module("ipytaskfarm.nothing")
    assert not hasattr(client, "nothing")


def test_old_names_of_the_package_and_the_client() -> None:
    connects: list[Any] = [client.get_task_client, client.get_multiengine_client, client.TaskClient]
    for connect in connects:
        for furl in ("pb://abc@127.0.0.1:10105/tc", "/nowhere/ipcontroller-tc.furl"):
            with pytest.raises(
                errors.FarmNotRunning, match=r"FURL of IPython 0\.10: no argument is the farm 'default'"
            ):
                connect(furl_or_file=furl)
    namespace: dict[str, Any] = {}
    exec("from ipytaskfarm import TaskRejectError", namespace)
    assert namespace["TaskRejectError"] is errors.TaskRejectError


@pytest.mark.parametrize("kind", [PendingResult, Failure, client.TaskClient, client.MultiEngineClient, ipp.Client])
def test_names_that_are_gone_say_what_to_write(kind: Any) -> None:
    thing = kind.__new__(kind)
    for name, text in GONE[kind.__name__].items():
        with pytest.raises(AttributeError) as raised:
            getattr(thing, name)
        assert text in str(raised.value)
        assert not hasattr(kind, name), "it is there after all"


def test_attributes_that_nothing_reads_are_told(lines: Lines) -> None:
    tc = client.TaskClient.__new__(client.TaskClient)
    tc.retries = 2  # type: ignore[attr-defined]
    assert "nothing reads 'retries' of a TaskClient; instead: Task(…, retries=2)" in lines()[0]
    mec = client.MultiEngineClient.__new__(client.MultiEngineClient)
    mec.target = [0]  # type: ignore[attr-defined]
    assert "nothing reads 'target' of a MultiEngineClient, did you mean 'targets'" in lines()[0]
    mec.targets = [0]
    tc.block = False

    class Mine(client.TaskClient):
        pass

    Mine.__new__(Mine).anything = 1  # type: ignore[attr-defined]
    assert lines() == []


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_keywords_of_other_systems_say_what_to_write(name: str) -> None:
    with pytest.raises(TypeError) as raised:
        Task(abs, **dict[str, Any]({"args": (1,), name: 1}))
    assert ARGUMENTS[name] in str(raised.value)


def test_old_keywords_are_the_new_ones() -> None:
    @old_keywords(taskids="ids")
    def call(ids: Any = None, more: int = 0) -> Any:
        return ids, more

    assert call(taskids=[1], more=2) == call([1], 2) == ([1], 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="one argument"):
        call([1], taskids=[2], ids=[1])  # type: ignore[call-arg, misc]


def test_rules_on_the_class_of_an_object_are_told(lines: Lines) -> None:
    class CoreJob:
        max_parallel = 5
        error_time = 600

        def execute(self) -> None:
            pass

    task_arguments.note_rules_of(CoreJob())
    (text,) = lines()
    for part in ("does not get its error_time, max_parallel", "max_parallel=…", "retry_delay"):
        assert part in text
    task_arguments.note_rules_of(CoreJob())
    assert lines() == []


def test_a_decorator_without_brackets_is_refused() -> None:
    from ipytaskfarm.client.maps import Mapper, ParallelFunction

    without = ParallelFunction(Mapper(None, abs))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"@tc\.parallel\(\), with \(\)"):
        without(range(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"@mec\.parallel\(\), with \(\)"):
        engine_maps.check_dist(abs)  # type: ignore[arg-type]
