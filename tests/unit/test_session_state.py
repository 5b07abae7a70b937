"""Functions whose results depend on state of this session, which no error would tell of, are warned of."""

from __future__ import annotations

import contextlib
import decimal
import functools
import importlib
import io
import locale
import logging
import os
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import managers
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.completer import ProvisionalCompleterWarning

from ipytaskfarm.serialization import session_state
from ipytaskfarm.serialization.pack import add_dependency, pack_function
from ipytaskfarm.serialization.rebuild_values import key_of_mark
from ipytaskfarm.serialization.standard_values import used_marks
from ipytaskfarm.system import process
from tests.support.pack_peer import Notebook

DRAWS = """
import decimal, random
import numpy as np
rng, legacy, plain = np.random.default_rng(1), np.random.RandomState(1), random.Random(1)
def by_global(i): return rng.random()
def by_default(i, g=legacy): return g.rand()
def by_keyword(i, *, g=plain): return g.random()
def by_helper(i): return by_global(i)
def hidden(i): return np.random.rand(), random.random(), random.Random(i).random()
def argument(g): return g.random()
class Walk:
    def __init__(self): self.rng = np.random.default_rng(1)
    def step(self, i): return self.rng.random()
def made():
    mine = np.random.default_rng(1)
    return lambda i: mine.random()
def reckons(i): return decimal.Decimal(1) / 3
def divides(i): return np.float64(1) / i
"""


@pytest.fixture(autouse=True)
def _nothing_warned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin as a program does that has set nothing.  A title may stand over the first variables of this process."""
    monkeypatch.setattr(process, "farm_began_with", dict(os.environ))
    session_state._warned.clear()
    yield
    session_state._warned.clear()


def said(call: Callable[..., Any], *args: Any) -> list[str]:
    written = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(written):
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Pickle, copy, and deepcopy support")  # of itertools, since Python 3.12
        call(*args)
    assert all(each.filename == __file__ for each in caught), "it points at the line that called"
    lines = written.getvalue().splitlines()
    assert all(f"({__file__}:" in line for line in lines)
    told = [line.removeprefix("ipytaskfarm: ").partition(f" ({__file__}")[0] for line in lines]
    return [*(str(each.message) for each in caught), *told]


def test_generators_that_tasks_share_here_but_not_on_engines(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np.random.mtrand, "_rand", np.random.RandomState())  # other tests have seeded the usual one
    notebook.run(DRAWS)
    for name, who, remedy in (
        ("by_global", "by_global draws from rng,", "such as rng.spawn(n)[i]"),
        ("by_default", "by_default draws from g,", "such as a seed for each"),
        ("by_keyword", "by_keyword draws from g,", "such as a seed for each"),
    ):
        (text,) = said(pack_function, notebook[name])
        assert text.startswith(who)
        assert text.endswith(remedy)
    assert said(pack_function, notebook["by_helper"]) == [], "it was told of by_global"
    for name in ("hidden", "argument"):
        assert said(pack_function, notebook[name]) == [], name


def test_generators_of_one_object_are_warned_of_in_maps(notebook: Notebook) -> None:
    notebook.run(DRAWS)
    shared = notebook["Walk"]().step, functools.partial(notebook["argument"], notebook["rng"]), notebook["made"]()
    for function in shared:  # of several such objects each may have a generator of its own
        assert said(pack_function, function) == []
        assert len(said(session_state.warn_of_one_for_all, function)) == 1
    for function in (notebook["by_helper"], len, notebook["Walk"], random.random, functools.partial(int, base=2)):
        assert said(session_state.warn_of_one_for_all, function) == []


def test_decimals_and_numpys_errors(notebook: Notebook) -> None:
    notebook.run(DRAWS)
    reckons, divides = notebook["reckons"], notebook["divides"]
    assert said(pack_function, reckons) == said(pack_function, divides) == []
    notebook.run(DRAWS)
    with decimal.localcontext(decimal.Context(prec=5)), np.errstate(divide="raise"):
        (text,) = said(pack_function, notebook["reckons"])
        assert text.startswith("this session's decimal context (prec=5, ROUND_HALF_EVEN) is not that of tasks")
        (text,) = said(pack_function, notebook["divides"])
        assert text.startswith("numpy raises here for divide (np.seterr), but not in tasks")
        notebook.run(DRAWS)
        assert said(pack_function, notebook["reckons"]) == [], "once is enough"


CHANGES = """
import collections, decimal, itertools
import numpy as np
results, table, counts, stack, known = [], {}, collections.Counter(), [], {}
out, number, best = np.zeros(3), 0, 0
money, whole = decimal.Decimal(0), None
numbers = itertools.count()
class Made:
    count = 0
    def __init__(self): Made.count += 1
class Walk:
    def __init__(self): self.seen, self.here, self.known = [], 0, {}
    def step(self, i): self.here += i
    def note(self, i): self.seen.append(i)
    def set(self, i): self.here = i
    def memo(self, i):
        if i not in self.known: self.known[i] = i
        return self.known[i]
def appends(i): results.append(i)
def gives(i): return results.append(i)
in_a_line, results_there = (lambda i: results.append(i)), (results := [])
def fills(i): table[i] = i
def writes(i): out[i] = i
def counted(i): counts[i] += 1
def adds(i):
    global number
    number += i
def keeps_best(i):
    global best
    best = max(best, i)
def pays(i):
    global money
    money += i
def collects(i):
    global whole
    whole = (whole or 0) + i
def scales(i, by=decimal.Decimal(2)):
    by *= i
    return by
def takes(i): return next(numbers)
def pops(i): return stack.pop()
def by_default(i, seen=[]): seen.append(i)
def of_class(i): Made.count += 1
def makes(i): return Made()
def remembers(i):
    if i not in known: known[i] = i * i
    return known[i]
def balanced(i):
    stack.append(i)
    depth = len(stack)
    stack.pop()
    return depth
def begins_anew(i):
    table.clear()
    table[i] = i
    return len(table)
def own(i):
    results, table, n = [], {}, 0
    results.append(i); table[i] = i; n += 1
    def inner():
        nonlocal n
        n += 1
    inner()
    return n
def made():
    n = 0
    def closes(i):
        nonlocal n
        n += i
    return closes
"""


def test_what_calls_change_for_one_another(notebook: Notebook) -> None:
    notebook.run(CHANGES)
    for name, expected in (
        ("gives", "gives changes results (results.append(…))"),
        ("in_a_line", "<lambda> changes results (results.append(…))"),
        ("appends", "appends changes results (results.append(…)), of which each engine has a copy"),
        ("fills", "fills changes table (table[…] = …)"),
        ("writes", "writes changes out (out[…] = …)"),
        ("counted", "counted changes counts (counts[i] += …)"),
        ("adds", "adds changes number (number += …)"),
        ("keeps_best", "keeps_best changes best (best = max(best, i))"),
        ("pays", "pays changes money (money += …)"),
        ("collects", "collects changes whole (whole = (whole or 0) + i)"),
        ("takes", "takes takes from numbers (next(numbers))"),
        ("pops", "pops takes from stack (stack.pop())"),
        ("by_default", "by_default changes seen (seen.append(…))"),
        ("of_class", "of_class changes Made (Made.count += …)"),
    ):
        (text,) = said(pack_function, notebook[name])
        assert text.startswith(expected), text
    (text,) = said(pack_function, notebook["made"]())
    assert text.startswith("closes changes n (n += …)")
    for name in ("makes", "remembers", "balanced", "begins_anew", "own", "scales"):
        assert said(pack_function, notebook[name]) == [], name
    walk = notebook["Walk"]()
    for method, expected in ((walk.step, "self.here += …"), (walk.note, "self.seen.append(…)")):
        assert said(pack_function, method) == [], "a task may change an object of its own"
        (text,) = said(session_state.warn_of_one_for_all, method)
        assert f"changes self ({expected})" in text
    for method in (walk.set, walk.memo):
        assert said(session_state.warn_of_one_for_all, method) == []
    walk.seen = object.__new__(managers.ListProxy)
    assert said(session_state.warn_of_one_for_all, walk.note) == [], "a manager's list is shared with all engines"


SET_LATER = """
import contextvars, decimal, os
import numpy as np
level = contextvars.ContextVar("level", default=1)
table = {"n": 1}
class Row:
    def __init__(self): self.kept = object()
row = Row()
def reckons(i): return decimal.Decimal(1) / 3
def by_helper(i): return reckons(i)
def divides(i): return np.float64(1) / i
def get_level(i): return level.get()
def reads(i): return os.environ.get("TEST_SET_LATER")
def unsure(i): return reckons(i), row
"""


@pytest.mark.parametrize("name", ["reckons", "by_helper", "divides", "get_level", "reads", "unsure"])
def test_what_was_set_after_a_function_was_sent(notebook: Notebook, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    notebook.run(SET_LATER)
    function = notebook[name]
    assert said(pack_function, function) == said(pack_function, function) == []
    packed = pack_function(function)
    monkeypatch.setenv("TEST_SET_LATER", "1")
    notebook["level"].set(5)
    with decimal.localcontext(prec=5), np.errstate(all="raise"):
        until_s = monotonic() + 60
        while not (texts := said(pack_function, function)):
            assert monotonic() < until_s
    (text,) = texts
    assert any(part in text for part in ("(prec=5, ", "numpy raises here", "variable level", "TEST_SET_LATER"))
    assert pack_function(function) is packed


SETTINGS = """
import os
import pandas as pd
def frames(i): return pd.Series([i])
def reads(i): return os.environ.get("TEST_SET_HERE"), os.environ["PATH"]
def sets(i):
    os.environ["TEST_SET_HERE"] = "1"
    return os.environ["TEST_SET_HERE"]
"""


def test_settings_of_libraries_and_variables(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = types.ModuleType("torch")
    torch.get_default_dtype = lambda: "torch.float64"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    notebook.run(SETTINGS)
    assert said(pack_function, notebook["frames"]) == said(pack_function, notebook["reads"]) == []
    monkeypatch.setenv("TEST_SET_HERE", "1")
    notebook.run(SETTINGS + "\nimport torch\ndef tensors(i): return torch")
    with pd.option_context("compute.use_bottleneck", False, "mode.string_storage", "pyarrow"):
        (text,) = said(pack_function, notebook["frames"])
        assert "settings of pandas (compute.use_bottleneck=False, mode.string_storage='pyarrow')" in text
    (text,) = said(pack_function, notebook["tensors"])
    assert "(default dtype torch.float64)" in text
    (text,) = said(pack_function, notebook["reads"])
    assert text.startswith("reads reads the variable TEST_SET_HERE, which was set in this session")
    assert said(pack_function, notebook["sets"]) == []
    session_state._warned.clear()
    monkeypatch.setattr(process, "farm_began_with", dict(os.environ))
    notebook.run(SETTINGS)
    assert said(pack_function, notebook["reads"]) == [], "this process has started the farm with it"


READS = """
import argparse, contextvars, datetime, logging, random, sys, warnings
import numpy as np
from random import gauss
level = contextvars.ContextVar("level", default=1)
log = logging.getLogger("reads")
def draws(x): return random.random()
def by_name(x): return gauss(0, 1)
def by_helper(x): return draws(x)
def imports(x):
    from random import choice
    return choice(x)
def seeds(x): random.seed(x); return random.random()
def of_argument(random): return random.random()
def of_generator(x): return random.Random(x).random() + np.random.default_rng(x).random()
def by_numpy(x): return np.random.rand()
def get_level(x): return level.get()
def logs(x): log.info("x"); return x
def logs_with_setup(x): logging.basicConfig(level=10); log.info("x"); return x
def catches(x):
    try: return np.log(x)
    except RuntimeWarning: return 0
def catches_future(x):
    try: return np.log(x)
    except FutureWarning: return 0
def warns(x): warnings.warn("x"); return x
def filters(x):
    with warnings.catch_warnings(): warnings.warn("x")
def day(x): return datetime.date(2024, 3, 1).strftime("%A")
def of_arguments(x): return "--fast" in sys.argv
def parses(x): return argparse.ArgumentParser().parse_args().n + x
def parses_its_own(x): return argparse.ArgumentParser().parse_args(x).n
def words(): return []
def parses_words(x): return argparse.ArgumentParser().parse_args(words()).n
def passes_on(x): return map(argparse.ArgumentParser().parse_args, words())
def parses_after_setting(x): sys.argv = ["x"]; return argparse.ArgumentParser().parse_args().n
def own_arguments(x): sys.argv = ["x", "y"]; return sys.argv[1]
class Key:
    def __hash__(self): return hash(1)
def of_keys(x): return {Key(): x}
def part_of(x): return [hash(each) % 4 for each in x]
"""


def test_hashes_of_texts(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    notebook.run(READS)
    assert said(pack_function, notebook["part_of"]) == []
    monkeypatch.delenv("PYTHONHASHSEED")
    notebook.run(READS)
    assert said(pack_function, notebook["of_keys"]) == []
    (text,) = said(pack_function, notebook["part_of"])
    assert text.startswith("part_of uses hash(), which gives another number for the same text in this session")


def test_subclasses_that_nothing_names(notebook: Notebook) -> None:
    notebook.run("""
        class Plugin:
            @classmethod
            def names(cls): return [each.__name__ for each in cls.__subclasses__()]
        class Alone(Plugin): pass
        def all_names(): return Plugin.names()
        def direct(): return len(Plugin.__subclasses__())
        def other(): return Plugin(), int.__subclasses__(), Alone.__subclasses__()
    """)
    for name, asks in (("all_names", "Plugin.names"), ("direct", "direct")):
        session_state._warned.clear()
        (text,) = said(pack_function, notebook[name])
        assert text.startswith(f"{asks} asks for the subclasses of Plugin.")
        assert "and Alone may be missing" in text
    session_state._warned.clear()
    del notebook.names["Plugin"]
    assert said(pack_function, notebook["other"]) == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("[name for name, value in globals().items() if callable(value)]", "globals()"),
        ("globals().get('task_' + n)", "globals()"),
        ("('task_' + n) in globals()", "globals()"),
        ("sorted(vars(sys.modules[__name__]))", "sys.modules[__name__]"),
        ("inspect.getmembers(sys.modules['__main__'], inspect.isclass)", "sys.modules['__main__']"),
        ("dir(me)", "me"),
        ("hasattr(me, 'task_' + n)", "me"),
        ("getattr(me, 'task_' + n, None)", "me"),
        ("globals()['task_' + n]", ""),
        ("globals().get('a')", ""),
        ("'a' in globals()", ""),
        ("'%(a)s' % globals()", ""),
        ("eval(n, globals())", ""),
        ("globals().update(b=1)", ""),
        ("getattr(me, 'task_' + n)", ""),
        ("hasattr(n, 'task_' + n), dir(n), vars(other)", ""),
    ],
)
def test_functions_that_look_through_the_script(notebook: Notebook, body: str, told: str) -> None:
    notebook.run(f"""
        import inspect, sys, types
        me, other, a = sys.modules["__main__"], types.SimpleNamespace(), 1
        def looks(n): return {body}
    """)
    assert [text.partition(", where")[0] for text in said(pack_function, notebook["looks"])] == (
        [f"looks looks through {told}"] if told else []
    )


def test_generators_that_the_program_has_seeded(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    def told_of(*names: str) -> list[str]:
        notebook.run(READS)
        return [name for name in names if said(pack_function, notebook[name])]

    every = ("draws", "by_name", "by_helper", "imports", "seeds", "of_argument", "of_generator", "by_numpy")
    monkeypatch.setattr(np.random.mtrand, "_rand", np.random.RandomState())
    monkeypatch.setattr(
        sys.modules["__main__"], "In", ["", "def work(i): random.seed(i); return random.random()"], raising=False
    )
    assert told_of(*every) == []
    sys.modules["__main__"].In.append("import random\n\nrandom.seed(42)")
    session_state._warned.clear()
    assert told_of(*every) == ["draws", "by_name", "imports"], "of draws it was told already"
    session_state._warned.clear()
    notebook.run(READS)
    (text,) = said(pack_function, notebook["by_helper"])
    assert text.startswith("draws draws from the generator of random, which this program has seeded (In [2]:3)")


@pytest.mark.usefixtures("_numpys_generator")
def test_numpys_generator_was_seeded(notebook: Notebook) -> None:
    notebook.run(READS)
    np.random.seed(1)
    (text,) = said(pack_function, notebook["by_numpy"])
    assert text.startswith("by_numpy draws from the generator of numpy.random, which this program has seeded: ")


def test_what_else_functions_read_of_this_session(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("get_level", "logs", "logs_with_setup", "catches", "filters", "day", "of_arguments", "own_arguments")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    notebook.run(READS)
    assert [said(pack_function, notebook[name]) for name in names] == [[]] * len(names)
    notebook.run(READS)
    notebook["level"].set(5)
    sys.argv.append("--slow")
    notebook["log"].setLevel(logging.DEBUG)
    monkeypatch.setattr(notebook["log"], "handlers", [logging.NullHandler()])
    monkeypatch.setattr(locale, "setlocale", lambda category: "de_DE.UTF-8" if category == locale.LC_TIME else "C")
    found = {name: said(pack_function, notebook[name]) for name in names if name != "catches"}
    assert [name for name, texts in found.items() if texts] == ["get_level", "logs", "day", "of_arguments"]
    assert found["of_arguments"] == [
        "of_arguments reads sys.argv, which is empty in tasks, and here ['--slow']: read it here, and pass on what the "
        "function needs"
    ]
    session_state._warned.clear()
    assert said(pack_function, notebook["parses"]) == [
        "parses reads sys.argv (parse_args), which is empty in tasks, and here ['--slow']: read it here, and pass on "
        "what the function needs"
    ]
    for name in ("parses_its_own", "parses_words", "passes_on", "parses_after_setting"):
        assert not said(pack_function, notebook[name])
    assert found["get_level"][0].startswith("get_level reads the context variable level, which this session has set")
    assert found["logs"][0].startswith("logs logs below WARNING, which this session shows (level DEBUG)")
    assert found["day"][0].startswith(
        "day uses the locale (strftime), which this session has set (LC_TIME=de_DE.UTF-8)"
    )
    written = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(written):
        warnings.simplefilter("default")
        warnings.filterwarnings("error", category=ProvisionalCompleterWarning)  # as each shell of IPython does
        warnings.filterwarnings("error", category=DeprecationWarning)
        for name in ("warns", "catches", "catches_future"):
            pack_function(notebook[name])
    assert written.getvalue() == ""
    notebook.run(READS)
    with warnings.catch_warnings(), contextlib.redirect_stderr(written):
        warnings.simplefilter("error")
        pack_function(notebook["catches"])  # told by a note: a warning would be an error
        notebook.run(DRAWS)
        with pytest.raises(UserWarning, match="draws from rng"):  # as itself, not as a value that cannot travel
            pack_function(notebook["by_global"])
    assert "catches mentions RuntimeWarning, and this session makes errors of warnings" in written.getvalue()


def test_functions_of_modules_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reads_variables.py").write_text("import os\ndef reads(x): return os.environ.get('READS_THIS')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("READS_THIS", "1")
    add_dependency(str(tmp_path))
    module = importlib.import_module("reads_variables")
    (text,) = said(pack_function, module.reads)
    assert text.startswith("reads reads the variable READS_THIS, which was set in this session")


def test_a_module_that_sets_variables_sets_them_in_tasks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = "import os\nimport has_settings\ndef reads(x): return os.environ.get('READS_THIS')\n"
    (tmp_path / "reads_set_variables.py").write_text(reads)
    (tmp_path / "has_settings.py").write_text("from os import environ\nenviron.setdefault('READS_THIS', '1')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("READS_THIS", "1")
    add_dependency(str(tmp_path))
    module = importlib.import_module("reads_set_variables")
    assert said(pack_function, module.reads) == []


CHANGED_INSIDE = """
import numpy as np, pandas as pd
frame = pd.DataFrame({"a": [0.0] * 4})
nested, lists, out = {"r": {}}, {}, np.zeros(4)
class Kept:
    items = []
class Counter:
    def __init__(self): self.n = 0
    def count(self, x): self.n += x
    def show(self, x): print(x, self.n)
counter = Counter()
def of_frame(i): frame.loc[i, "a"] = i
def of_nested(i): nested["r"][i] = i
def of_class(i): Kept.items.append(i)
def of_method(i): counter.count(i)
def of_lists(i): lists.setdefault(i, []).append(1)
def of_itself(i): of_itself.calls = getattr(of_itself, "calls", 0) + 1
def of_array(i): out.fill(i)
def at_places(i): np.add.at(out, i, 1)
def shows(i): counter.show(i)
def reads(i): return nested["r"].get(i), out.sum(), frame.loc[0, "a"]
def caches(i):
    if i not in nested["r"]: nested["r"][i] = i
    return nested["r"][i]
def own(i):
    made = frame.copy()
    made.loc[i, "a"] = i
    return made
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("of_frame", "frame (frame.loc[…] = …)"),
        ("of_nested", "nested (nested['r'][…] = …)"),
        ("of_class", "Kept (Kept.items.append(…))"),
        ("of_method", "counter (counter.count(…))"),
        ("of_lists", "lists (lists.setdefault(i, []).append(…))"),
        ("of_itself", "of_itself (of_itself.calls = getattr(of_itself, 'calls', 0) + 1)"),
        ("of_array", "out (out.fill(…))"),
        ("at_places", "out (np.add.at(…))"),
    ],
)
def test_changes_inside_of_globals(notebook: Notebook, name: str, expected: str) -> None:
    session_state._warned.clear()
    notebook.run(CHANGED_INSIDE)
    (text,) = said(pack_function, notebook[name])
    assert text.startswith(f"{name} changes {expected}, of which each engine has a copy")


@pytest.mark.parametrize("name", ["shows", "reads", "caches", "own"])
def test_what_changes_nothing_of_the_session(notebook: Notebook, name: str) -> None:
    notebook.run(CHANGED_INSIDE)
    assert said(pack_function, notebook[name]) == []


def test_another_thread_that_packs_meanwhile_does_not_count(
    notebook: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook.run("""
        import threading
        from ipytaskfarm.serialization.pack import pack_function
        hits, mark = [], object()
        def other(): return mark
        class Meanwhile:
            def __reduce__(self):
                thread = threading.Thread(target=pack_function, args=(other,))
                thread.start()
                thread.join()
                return int, ()
        slow = Meanwhile()
        def f():
            hits.append(mark)
            return slow
        """)
    pack_function(notebook["f"])
    assert "f changes hits (hits.append(…))" in capsys.readouterr().err
    assert used_marks.keys == {key_of_mark(notebook["mark"])}
