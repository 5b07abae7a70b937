"""Running tasks on a real engine: order, values, output, failures, surroundings."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from ipytaskfarm.core.messages import Returned, SetUp
from ipytaskfarm.core.messages.engine_commands import ExecuteBody
from ipytaskfarm.core.messages.payload import CallWork, CellPlace, StringWork
from ipytaskfarm.serialization.pack import pack, pack_function, unpack_error
from ipytaskfarm.system.flight_recorder import ABORT, TIME_LIMIT
from tests.support.fake_agent import FakeAgent, FakeEngine, Outcome
from tests.support.polling import eventually

CANCEL_ALL = "import asyncio\nfor t in asyncio.all_tasks(): t.cancel()\nawait asyncio.sleep(5)"


@pytest.fixture(scope="module")
def shared(agent: FakeAgent) -> FakeEngine:
    return agent.start_engine()


@pytest.fixture
def engine(shared: FakeEngine) -> Iterator[FakeEngine]:
    """One engine for all: each test begins with an empty namespace and proves that the engine lives."""
    shared.run("pass", clear_before=True)
    yield shared
    assert shared.run("alive = 6 * 7", "alive", clear_after=True).value == {"alive": 42}


def call(engine: FakeEngine, function: object, *args: object, **rules: object) -> Outcome:
    packed = pack_function(function)  # type: ignore[arg-type]
    work = CallWork(pack((args, {})) if args else None)
    (key,) = engine.hand(work, functions=[packed], function=packed.digest, **rules)
    return Outcome(engine.ended(key))


# -- values


def test_push_execute_pull_in_that_order(engine: FakeEngine) -> None:
    outcome = engine.run("b = a + 1; a = 0", "a", "b", push={"a": 5})
    assert outcome.value == {"a": 0, "b": 6}
    assert outcome.body.kind == "names"


def test_nothing_pulled_is_an_empty_dict(engine: FakeEngine) -> None:
    assert engine.run("a = 1").value == {}


def test_a_name_stays_until_it_is_cleared(engine: FakeEngine) -> None:
    engine.run("left = 1")
    assert engine.run("x = left", "x").value == {"x": 1}
    assert engine.run("x = left", "x", clear_before=True).failure.etype == "NameError"
    engine.run("left = 2", clear_after=True)
    assert engine.run("y = left").failure.etype == "NameError"


def test_clearing_happens_after_a_failure_too(engine: FakeEngine) -> None:
    engine.run("left = 1; 1/0", clear_after=True)
    assert engine.run("x = left").failure.etype == "NameError"


def test_id_is_the_engines_and_still_the_builtin(engine: FakeEngine) -> None:
    code = "import builtins; o = object(); a = str(id); same = id(o) == builtins.id(o)"
    outcome = engine.run(code, "a", "id", "same")
    assert outcome.value == {"a": "3", "id": 3, "same": True}
    assert type(outcome.value["id"]) is int


def test_a_missing_name_is_a_name_error(engine: FakeEngine) -> None:
    failure = engine.run("a = 1", "nope").failure
    assert failure.etype == "NameError"
    assert failure.value == "name 'nope' is not defined when the code has ended: pull='nope' asks for it"


def test_an_unpicklable_value_is_named(engine: FakeEngine) -> None:
    outcome = engine.run("import threading; ok = 1; a = threading.Lock()", "ok", "a")
    assert "'a'" in outcome.failure.value
    assert "lock" in outcome.failure.value
    assert outcome.ended.outcome == "error"
    assert "'g'" in engine.run("g = globals()", "g").failure.value


def test_calls(engine: FakeEngine) -> None:
    factor = 3

    def times(x: int, plus: int = 1) -> int:
        return factor * x + plus

    outcome = call(engine, times, 4)
    assert outcome.value == 13
    assert outcome.body.kind == "call"
    assert call(engine, len, [1, 2]).value == 2
    assert call(engine, lambda: None).value is None


def test_a_call_sees_the_engines_names(engine: FakeEngine) -> None:
    engine.run("only_here = 7")
    assert call(engine, eval, "1").value == 1
    of_a_notebook = eval("lambda: only_here + 1", {"__name__": "__main__"})
    assert call(engine, of_a_notebook).value == 8


def test_a_coroutine_function_is_awaited(engine: FakeEngine) -> None:
    async def slowly(x: int) -> int:
        import asyncio

        await asyncio.sleep(0.01)
        return x + 1

    assert call(engine, slowly, 1).value == 2


def test_a_payload_that_cannot_be_read_fails_the_task_alone(engine: FakeEngine) -> None:
    (key,) = engine.hand({"no": "work"})
    outcome = Outcome(engine.ended(key))
    assert outcome.ended.outcome == "error"
    (key,) = engine.hand(CallWork())
    assert "no function" in Outcome(engine.ended(key)).failure.value


def test_a_run_for_other_properties_is_returned(engine: FakeEngine) -> None:
    (key,) = engine.hand(StringWork("a = 1"), properties_version=99)
    returned = engine.wait(Returned)
    assert returned.runs == [key]
    assert returned.why == "properties changed"


# -- what IPython understands


def test_magics_shell_help_and_await(engine: FakeEngine) -> None:
    assert engine.run("%time x = 1", "x").value == {"x": 1}
    assert "Wall time" in engine.run("%time x = 1").body.stdout
    assert engine.run("!echo from the shell").body.stdout.strip() == "from the shell"
    assert engine.run("a = !echo one", "a").value["a"] == ["one"]
    assert "an integer" in engine.run("int?").body.stdout + str(engine.run("int?").body.outputs)
    assert engine.run("import asyncio\nawait asyncio.sleep(0.01)\ny = 2", "y").value == {"y": 2}
    assert engine.run("await asyncio.sleep(0)\n1/0").failure.etype == "ZeroDivisionError"
    assert engine.run("%nonsense").ended.outcome == "error"
    assert engine.run("get_ipython().ast_transformers", "id").value == {"id": 3}


def test_the_last_expressions_value_is_shown(engine: FakeEngine) -> None:
    for code in ("6 * 7", "a = 6\na * 7", "import asyncio\nawait asyncio.sleep(0, 42)"):
        assert engine.run(code).body.outputs == [{"data": {"text/plain": "42"}, "metadata": {}}], code
    for code in ("6 * 7;", "None", "a = 42", "if True:\n    42", "%time 1;"):
        assert engine.run(code).body.outputs == [], code
    assert engine.run("x = len(Out), len(In)", "x").value == {"x": (0, 1)}


def test_displays_and_their_updates(engine: FakeEngine) -> None:
    code = "from IPython.display import HTML\ndisplay(HTML('<b>x</b>'))\n"
    code += "h = display('one', display_id=True)\nh.update('two')"
    outputs = engine.run(code).body.outputs
    assert [output["data"].get("text/html") for output in outputs] == ["<b>x</b>", None]
    assert outputs[1]["data"]["text/plain"] == "'two'"
    assert engine.run("display(1); print(1); clear_output()", push={}).ended.outcome == "error"
    code = "from IPython.display import clear_output\ndisplay(1); print(1); clear_output(); print(2)"
    body = engine.run(code).body
    assert (body.stdout, body.outputs) == ("2\n", [])


def test_figures_are_drawn_once_per_task(engine: FakeEngine) -> None:
    pytest.importorskip("matplotlib")
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2])"
    assert [sorted(output["data"]) for output in engine.run(draw + ";").body.outputs] == [["image/png", "text/plain"]]
    assert engine.run("a = 1").body.outputs == []
    assert len(engine.run("plt.plot([1]);\n1/0").body.outputs) == 1


# -- output


def test_output_of_python_c_and_children(engine: FakeEngine) -> None:
    code = """
import os, sys, subprocess, ctypes, logging
print("python"); print("python err", file=sys.stderr)
os.write(1, b"descriptor\\n"); os.write(2, b"descriptor err\\n")
ctypes.CDLL(None).puts(b"from C")
subprocess.run(["echo", "child"])
print("original", file=sys.__stdout__)
"""
    body = engine.run(code).body
    assert body.stdout.splitlines()[0] == "python"
    assert sorted(body.stdout.splitlines()[1:]) == ["child", "descriptor", "from C", "original"]
    assert body.stderr.splitlines() == ["python err", "descriptor err"]
    assert engine.run("a = 1").body.stdout == ""


def test_endless_output_keeps_head_and_tail(engine: FakeEngine) -> None:
    body = engine.run("for i in range(100_000): print('line', i)").body
    assert body.stdout.startswith("line 0\nline 1\n")
    assert body.stdout.endswith("line 99999\n")
    assert "characters left out" in body.stdout
    assert len(body.stdout) < 140_000
    body = engine.run("import os\nfor i in range(3000): os.write(1, b'x' * 1000)\nos.write(1, b'end')").body
    assert body.stdout.endswith("xend")
    assert "characters left out" in body.stdout
    assert len(body.stdout) < 140_000


def test_threads_print_into_their_own_task_or_the_log(engine: FakeEngine) -> None:
    code = """
import threading
go = threading.Event()
def late():
    print("early")
    ready.set()
    go.wait()
    print("too late")
ready = threading.Event()
thread = threading.Thread(target=late); thread.start(); ready.wait()
"""
    assert engine.run(code).body.stdout == "early\n"
    assert engine.run("go.set(); thread.join()\nprint('mine')").body.stdout == "mine\n"
    assert engine.run("a = 1").body.stderr == ""
    assert "too late" in engine.output.read_text()


def test_a_forked_child_records_nothing_and_its_output_is_kept(engine: FakeEngine) -> None:
    code = """
import os
status = None
pid = os.fork()
if pid == 0:
    print("from the child")
else:
    status = os.waitpid(pid, 0)[1]
"""
    outcome = engine.run(code, "status")
    assert outcome.value == {"status": 0}
    assert outcome.body.stdout == "from the child\n"
    code = "import multiprocessing as mp\nwith mp.get_context('fork').Pool(2) as pool: r = pool.map(abs, [-1, -2])"
    assert engine.run(code, "r").value == {"r": [1, 2]}


# -- failures


def test_an_error_stops_the_task_where_it_happens(engine: FakeEngine) -> None:
    outcome = engine.run("zz = 0\n1/0\nzz = 5")
    assert outcome.ended.outcome == "error"
    assert outcome.body.value is None
    assert outcome.ended.failure is not None
    assert outcome.ended.failure.etype == "ZeroDivisionError"
    assert outcome.ended.failure.place == "<task>:2 in <module>"
    assert engine.run("x = zz", "x").value == {"x": 0}


def test_a_traceback_shows_the_users_frames_alone(engine: FakeEngine) -> None:
    text = engine.run("def f(x):\n    return 1 / x\n\nf(0)").failure.traceback
    assert text.count("File ") == 2
    assert "return 1 / x" in text
    assert "f(0)" in text
    assert "runner" not in text
    # The lines of an earlier task's function are not there any more; those of this one must not stand in for them.
    text = engine.run("a = 1\nb = 2\nf(0)").failure.traceback
    assert "b = 2" not in text
    text = engine.run("%time f(0)").failure.traceback
    assert "ZeroDivisionError" in text
    assert "interactiveshell" not in text


CELL = CellPlace("/tmp/ipykernel_4711/1234567.py", 2)


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("a = 1\n1/0", ":4 in <module>"),
        ("%env SEEN=1\n1/0", ":4 in <module>"),
        ("import asyncio\nawait asyncio.sleep(0)\n1/0", ":5 in <module>"),
        ("a = 1\nb = = 2", ":4"),
        ("def f(x):\n    return 1 / x\nf(0)", ":4 in f"),
        ("get_ipython().run_cell('a = 1')\n1/0", ":4 in <module>"),
    ],
)
def test_a_place_in_a_cell_has_the_cells_file_and_line(engine: FakeEngine, code: str, place: str) -> None:
    (key,) = engine.hand(StringWork(code, cell=CELL))
    outcome = Outcome(engine.ended(key))
    assert outcome.ended.failure is not None
    assert outcome.ended.failure.place == f"{CELL.file}{place}"
    assert f'File "{CELL.file}", line {place[1]}' in outcome.failure.traceback
    assert code.splitlines()[int(place[1]) - 3].strip() in outcome.failure.traceback
    assert engine.run(code).ended.failure != outcome.ended.failure, "the same code without a cell"


@pytest.mark.parametrize(
    ("code", "etype"),
    [
        ("7 = 5", "SyntaxError"),
        ("if x", "SyntaxError"),
        ("assert 1 == 2, 'no'", "AssertionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("exit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import sys; sys.exit()", "SystemExit"),
        ("input('? ')", "RuntimeError"),
        ("import getpass; getpass.getpass()", "RuntimeError"),
        ("breakpoint()", "RuntimeError"),
        ("import pdb; pdb.set_trace(); x = 1", "RuntimeError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("class E(Exception):\n    def __reduce__(self): raise ValueError('never')\nraise E('mine')", "E"),
        ("class E(Exception):\n    def __str__(self): raise ValueError('never')\nraise E('mine')", "E"),
        ("await asyncio_does_not_exist", "NameError"),
        (CANCEL_ALL, "asyncio.exceptions.CancelledError"),
    ],
)  # fmt: skip
def test_failures_leave_a_living_engine(engine: FakeEngine, code: str, etype: str) -> None:
    outcome = engine.run(code)
    assert outcome.ended.outcome == "error"
    assert outcome.failure.etype == etype
    assert isinstance(unpack_error(outcome.failure, 3), BaseException)


def test_an_error_that_cannot_be_looked_at_still_ends_the_task(engine: FakeEngine) -> None:
    code = "class E(Exception):\n    def __getattribute__(self, name): raise ValueError('never')\nraise E('mine')"
    (key,) = engine.hand(StringWork(code))
    failure = engine.ended(key).failure
    assert failure is not None
    assert (failure.etype, "ValueError" in failure.value) == ("E", True)


def test_a_rejection_is_no_error(engine: FakeEngine) -> None:
    outcome = engine.run("from ipytaskfarm.core.errors import TaskRejectError\nraise TaskRejectError('not here')")
    assert outcome.ended.outcome == "rejected"


def test_the_runs_time_is_its_own(engine: FakeEngine) -> None:
    outcome = engine.run("import time; time.sleep(0.2)")
    assert 0.2 <= outcome.ended.run_s < 0.5


# -- surroundings


def test_surroundings_are_restored(engine: FakeEngine) -> None:
    look = """
import os, sys, signal
seen = (os.getcwd(), os.environ.get("MINE"), os.environ.get("HOME"), sys.path[0],
        signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, type(sys.stdout).__name__)
"""
    before = engine.run(look, "seen").value
    change = """
os.chdir("/"); os.environ["MINE"] = "1"; del os.environ["HOME"]; sys.path.insert(0, "/nowhere")
signal.signal(signal.SIGUSR1, lambda *a: None); sys.stdout = open(os.devnull, "w")
"""
    engine.run(change)
    assert engine.run(look, "seen").value == before
    assert before["seen"][0] == str(engine.agent.folder)
    assert before["seen"][3] == str(engine.agent.folder)


def test_a_signals_handler_prints_amid_a_print(engine: FakeEngine) -> None:
    code = """
import os, signal
def handler(*args):
    os.write(1, b"h")
    print("in the handler")
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
for i in range(20_000):
    os.write(1, b"x")
    print(i)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    outcome = engine.run(code, "i")
    assert outcome.value == {"i": 19_999}
    assert "19999\n" in outcome.body.stdout


RESET_ALL = """
import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL)
"""


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_farms_own_signals_work_after_all_handlers_were_reset(engine: FakeEngine, by_hand: bool) -> None:
    if by_hand:
        engine.command("execute", msgspec.msgpack.encode(ExecuteBody(RESET_ALL)))
    else:
        engine.run(RESET_ALL)
    (key,) = engine.hand(StringWork("import time; time.sleep(60)"))
    engine.wait_running(key)
    before = engine.stack.stat().st_size
    os.kill(engine.pid, signal.SIGRTMIN + 6)
    eventually(lambda: engine.stack.stat().st_size > before)
    assert engine.interrupt(key, ABORT).outcome == "aborted"


def test_a_task_that_keeps_all_descriptors_is_recorded(engine: FakeEngine) -> None:
    code = """
import resource, subprocess
subprocess.run(["true"])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
kept = []
try:
    while True:
        kept.append(open("/dev/null"))
except OSError as error:
    why = error.errno
"""
    assert engine.run(code, "why").value == {"why": errno.EMFILE}
    assert engine.run("import os; os.system('echo later')").body.stdout == "later\n"


def test_python_s_own_names_come_back(engine: FakeEngine) -> None:
    engine.run("__builtins__ = {}")
    assert engine.run("found = len([1])", "found").value == {"found": 1}
    engine.run("__name__ = 'other'")
    assert engine.run("found = __name__", "found", clear_before=True).value == {"found": "__main__"}


def test_reset_leaves_the_names_of_the_farm(engine: FakeEngine) -> None:
    engine.run("left = 1\n%reset -f")
    assert engine.run("found = str(id), 'left' in globals()", "found").value == {"found": ("3", False)}


def test_children_can_be_interrupted(engine: FakeEngine) -> None:
    code = "import subprocess\np = subprocess.Popen(['sleep', '60']); p.send_signal(2); r = p.wait(5)"
    assert engine.run(code, "r").value == {"r": -2}


# -- interrupts


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import threading; threading.Event().wait()",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "import asyncio; await asyncio.sleep(60)",
        "import asyncio\nawait asyncio.sleep(0)\nwhile True: pass",
        "!echo begun; sleep 60",
        "%time import time; time.sleep(60)",
    ],
)
@pytest.mark.parametrize("cause", [ABORT, TIME_LIMIT])
def test_an_interrupt_ends_the_task_and_not_the_next(engine: FakeEngine, code: str, cause: int) -> None:
    first, second = engine.hand(StringWork(code), StringWork("after = 1", ("after",)))
    engine.wait_running(first)
    if code.startswith("!"):
        # While pexpect starts the child, its functions catch the errors. An agent would go on to SIGTERM.
        eventually(lambda: "begun" in engine.recorder.words.read(first))
    outcome = Outcome(engine.interrupt(first, cause))
    assert outcome.ended.outcome == ("aborted" if cause == ABORT else "time limit")
    assert outcome.failure.etype.endswith("TaskCancelled" if cause == ABORT else "TimeLimitExceeded")
    assert Outcome(engine.ended(second)).value == {"after": 1}


@pytest.mark.parametrize(
    "code",
    [
        "print('x'); [0 for _ in range(100)]",
        "display([1] * 50)",
        "logging.warning('x')",
        "pickle.dumps(Own)",
        "p = multiprocessing.get_context('fork').Process(target=print); p.start(); p.join()",
    ],
)
def test_a_time_limit_is_not_lost_in_functions_that_catch_errors(engine: FakeEngine, code: str) -> None:
    """They catch OSError or Exception, and `TimeLimitExceeded` is both."""
    beginning = "import logging, multiprocessing, pickle\nclass Own: pass\nwhile True:\n    "
    for _ in range(20):
        (key,) = engine.hand(StringWork(beginning + code))
        engine.wait_running(key)
        outcome = Outcome(engine.interrupt(key, TIME_LIMIT, timeout_s=10))
        assert outcome.ended.outcome == "time limit"
        assert outcome.failure.etype.endswith("TimeLimitExceeded")


def test_an_interrupt_amid_the_loop_finds_what_goes_on_next(engine: FakeEngine) -> None:
    """The interrupt comes during a callback of the loop, and then the task blocks the loop before it can
    be cancelled.
    """
    code = """
import asyncio, time
asyncio.get_running_loop().call_soon(time.sleep, 0.5)
await asyncio.sleep(0)
while True: pass
"""
    (key,) = engine.hand(StringWork(code))
    engine.wait_running(key)
    assert engine.interrupt(key, ABORT).outcome == "aborted"


HALF_WAY = """
import importlib.abc, sys
class Waits(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == AT:
            sys.meta_path.remove(self)
            open(HERE, "w").close()
            while True: pass
sys.meta_path.insert(0, Waits())
import PACKAGE
"""


@pytest.mark.parametrize(
    ("package", "at", "ends"), [("numpy", "numpy.exceptions", True), ("xml.sax", "xml.sax.xmlreader", False)]
)
def test_an_engine_whose_import_of_compiled_code_was_interrupted_ends(
    agent: FakeAgent, tmp_path: Path, package: str, at: str, ends: bool
) -> None:
    engine = agent.start_engine()
    here = tmp_path / "here"
    code = HALF_WAY.replace("AT", repr(at)).replace("HERE", repr(str(here))).replace("PACKAGE", package)
    key, following = engine.hand(StringWork(code), StringWork(f"import {package}; done = 1", ("done",)))
    eventually(here.exists)
    assert engine.interrupt(key, ABORT).outcome == "aborted"
    if ends:
        assert "numpy, a package with compiled modules" in engine.wait(SetUp).error
        assert engine.returned().runs == [following]
    else:
        assert Outcome(engine.ended(following)).value == {"done": 1}


def test_an_error_on_no_line_is_told(engine: FakeEngine) -> None:
    """An interrupt at a function's very first instruction breaks it off on no line."""
    code = """
nowhere = compile("1/0", "<nowhere>", "exec").replace(co_linetable=b"")
%time exec(nowhere)
"""
    assert engine.run(code).failure.etype == "ZeroDivisionError"


def test_an_abort_is_not_swallowed_by_except_exception(engine: FakeEngine) -> None:
    code = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except Exception:\n        pass"
    (key,) = engine.hand(StringWork(code))
    engine.wait_running(key)
    assert engine.interrupt(key, ABORT).outcome == "aborted"


def test_a_late_interrupt_hits_nobody(engine: FakeEngine) -> None:
    """The want of a run that has ended, and signals during the next ones."""
    works = [StringWork(f"x = {i}\nfor _ in range(200): pass", ("x",)) for i in range(300)]
    keys = engine.hand(*works)
    for key in keys[::3]:
        engine.recorder.want(key, ABORT)
        os.kill(engine.pid, signal.SIGRTMIN + 5)
    outcomes = {key: engine.ended(key) for key in keys}
    for number, key in enumerate(keys):
        outcome = outcomes[key].outcome
        assert outcome == "" or (outcome == "aborted" and number % 3 == 0), (number, outcomes[key])


def test_memory_is_flat(engine: FakeEngine) -> None:
    process = psutil.Process(engine.pid)

    def batch(first: int) -> int:
        for key in engine.hand(*[StringWork(f"a{i % 7} = {i}", (f"a{i % 7}",)) for i in range(first, first + 2000)]):
            engine.ended(key)
            del engine.results[key]
        return process.memory_info().rss

    batch(0)
    before = batch(10_000)
    after = max(batch(20_000 + 2000 * n) for n in range(3))
    assert after - before < 3 << 20


def test_results_larger_than_the_ring(engine: FakeEngine) -> None:
    assert len(engine.run("a = b'x' * 5_000_000", "a").value["a"]) == 5_000_000


def test_bodies_are_decodable_by_anyone(engine: FakeEngine) -> None:
    raw = msgspec.msgpack.decode(engine.run("print(1)").ended.body)
    assert raw["stdout"] == "1\n"
