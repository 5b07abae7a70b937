"""Output of tasks as at a terminal: in the order in which it was written, through streams that are whole.

To extend the first table, add a line: what a task runs, and what its stdout is then.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from ipytaskfarm import Farm, MapTask, Task, TaskClient
from tests.support.farms import DEADLINE_S

ABC = "a\nb\nc\n"

ORDER = {
    "a child": ("print('a'); subprocess.run(['echo', 'b']); print('c')", ABC),
    "a child last": ("print('a'); print('b'); subprocess.run(['echo', 'c'])", ABC),
    "a child first": ("subprocess.run(['echo', 'a']); print('b'); print('c')", ABC),
    "children between": ("for c in 'ab': print(c); os.system('echo ' + c)", "a\na\nb\nb\n"),
    "os.system": ("print('a'); os.system('echo b'); print('c')", ABC),
    "an empty line": ("print('a'); os.system('echo b'); print(); print('c')", "a\nb\n\nc\n"),
    "amid a line": ("print('a', end=''); os.write(1, b'b'); print(); print('c')", "ab\nc\n"),
    "os.write": ("print('a'); os.write(1, b'b\\n'); print('c')", ABC),
    "many": ("for n in range(200): print(n); os.write(1, b'%d\\n' % n)", "".join(f"{n // 2}\n" for n in range(400))),
    "posix_spawn": (
        "print('a'); pid = os.posix_spawn('/bin/echo', ['echo', 'b'], os.environ); os.waitpid(pid, 0); print('c')",
        ABC,
    ),
    "Popen": ("print('a'); p = subprocess.Popen('echo b', shell=True); p.wait(); print('c')", ABC),
    "stdout=sys.stdout": ("print('a'); subprocess.run(['echo', 'b'], stdout=sys.stdout); print('c')", ABC),
    "fork": (
        "print('a')\npid = os.fork()\nif pid == 0:\n    print('b'); os._exit(0)\nos.waitpid(pid, 0); print('c')",
        ABC,
    ),
    "a process of multiprocessing": (
        "import multiprocessing\nprint('a')\n"
        "p = multiprocessing.get_context('fork').Process(target=print, args=('b',))\np.start(); p.join(); print('c')",
        ABC,
    ),
    "spawned": (
        "import multiprocessing\nprint('a')\n"
        "p = multiprocessing.get_context('spawn').Process(target=print, args=('b',))\np.start(); p.join(); print('c')",
        ABC,
    ),
    "C": ("import ctypes\nc = ctypes.CDLL(None)\nprint('a'); c.puts(b'b'); c.printf(b'c\\n')", ABC),
    "C between": ("import ctypes\nc = ctypes.CDLL(None)\nprint('a'); c.puts(b'b'); c.fflush(None); print('c')", ABC),
    "buffer": ("print('a'); sys.stdout.buffer.write(b'b\\n'); print('c')", ABC),
    "__stdout__": ("print('a'); print('b', file=sys.__stdout__); print('c')", ABC),
    "write": ("sys.stdout.write('a\\n'); os.write(1, b'b\\n'); sys.stdout.writelines(['c', '\\n'])", ABC),
    "a character in two writes": ("os.write(1, b'\\xc3'); os.write(1, b'\\xa4\\n'); print('b')", "ä\nb\n"),
    "no text": ("os.write(1, b'\\xff\\n'); print('b')", "\\xff\nb\n"),
    "redirected": (
        "import contextlib, io\nprint('a')\nwith contextlib.redirect_stdout(io.StringIO()) as f: print('hidden')\n"
        "print('b'); print('c' if f.getvalue() == 'hidden\\n' else 'lost')",
        ABC,
    ),
    "another wrapper": (
        "import io\nprint('a')\nw = io.TextIOWrapper(sys.stdout.buffer)\nw.write('b\\n'); w.flush(); del w\nprint('c')",
        ABC,
    ),
    "the descriptor redirected": (
        "import tempfile\nprint('a')\nkept = os.dup(1)\nwith tempfile.TemporaryFile() as f:\n"
        "    os.dup2(f.fileno(), 1); print('b'); os.system('echo c'); os.dup2(kept, 1); os.close(kept)\n"
        "    f.seek(0); print(f.read().decode(), end='')",
        ABC,
    ),
    "a thread": (
        "import threading as t\nprint('a'); t = t.Thread(target=print, args=('b',)); t.start(); t.join(); print('c')",
        ABC,
    ),
    "a logger": (
        "import logging\nlog = logging.getLogger('mine'); log.addHandler(logging.StreamHandler(sys.stdout))\n"
        "log.warning('a'); os.system('echo b'); log.warning('c'); log.handlers.clear()",
        ABC,
    ),
    "detached": ("import io\nprint('a'); sys.stdout = io.TextIOWrapper(sys.stdout.detach()); print('b\\nc')", ABC),
    "a file": ("print('a'); open('/dev/stdout', 'w').write('b\\n'); os.system('echo c > /dev/stdout')", ABC),
    "fdopen": ("print('a'); sys.stdout = os.fdopen(1, 'w'); print('c'); os.system('echo b')", ABC),
    "closed": ("sys.stdout.close(); print('a'); sys.__stdout__.close(); os.write(1, b'b\\n'); print('c')", ABC),
    "a shell's magic": ("print('a')\n!echo b\nprint('c')", "a\nb\r\nc\n"),  # by a pseudo-terminal
}  # fmt: skip

IMPORTS = "import os, subprocess, sys\n"


@pytest.mark.parametrize("case", ORDER)
def test_stdout_is_in_order(tc: TaskClient, case: str) -> None:
    code, expected = ORDER[case]
    result = tc.run(Task(IMPORTS + code, clear_after=True), block=True)
    assert (result.failure, result.stdout) == (None, expected)
    silent = tc.run(Task("a = 1"), block=True)
    assert (silent.stdout, silent.stderr) == ("", "")


STDERR = {
    "a child": "print('a', file=sys.stderr); os.system('echo b >&2'); print('c', file=sys.stderr)",
    "logging": "import logging; logging.warning('a'); os.write(2, b'b\\n'); logging.error('c')",
    "warnings": "import warnings; warnings.warn('a'); os.write(2, b'b\\n'); warnings.warn('c')",
    "buffer": "sys.stderr.write('a\\n'); sys.stderr.buffer.write(b'b\\n'); print('c', file=sys.__stderr__)",
    "faulthandler": "import faulthandler\ndef NameError_(): faulthandler.dump_traceback(all_threads=False)\n"
    "os.write(2, b'a\\n'); NameError_(); print('c', file=sys.stderr)",
    "a traceback": "import traceback\nos.write(2, b'a\\n')\ntry: b\nexcept NameError: traceback.print_exc()\n"
    "os.system('echo c >&2')",
}  # fmt: skip


@pytest.mark.parametrize("case", STDERR)
def test_stderr_is_in_order(tc: TaskClient, case: str) -> None:
    result = tc.run(Task(IMPORTS + STDERR[case], clear_after=True), block=True)
    assert (result.failure, result.stdout) == (None, "")
    lines = [
        line for line in result.stderr.splitlines() if re.search(r"(^|:)[abc]$|UserWarning: [ac]$|NameError", line)
    ]
    assert "".join(line[-1] if len(line) < 30 or "User" in line else "b" for line in lines) == "abc", result.stderr
    assert tc.run(Task("a = 1"), block=True).stderr == ""


STREAM = """
import io, sys
facts = {}
for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
    s = getattr(sys, name)
    facts[name] = (
        s.isatty(), s.fileno(), s.closed, s.mode, s.writable(), s.readable(), s.seekable(), s.encoding.lower(),
        type(s.errors), s.newlines, type(s.line_buffering), type(s.name), s.buffer.writable(), s.buffer.fileno(),
    )
    for refused in (s.read, s.tell, s.truncate):
        try: refused(); facts[name] += ("accepted",)
        except io.UnsupportedOperation: pass
sys.stdout.reconfigure(line_buffering=True, errors="replace", encoding="latin-1")
noted = sys.stdout.errors, sys.stdout.encoding, sys.stdout.line_buffering, sys.stderr.errors
try: sys.stdout.reconfigure(colour=1)
except TypeError: refused = True
"""


def test_a_stream_has_what_programs_ask_of_it(tc: TaskClient) -> None:
    result = tc.run(Task(STREAM, pull=("facts", "noted", "refused"), clear_after=True), block=True)
    for name, number in (("stdout", 1), ("stderr", 2), ("__stdout__", 1), ("__stderr__", 2)):
        facts = result["facts"][name]
        assert facts[:7] == (False, number, False, "w", True, False, False)
        assert facts[7:10] == ("utf-8", str, None)
        assert facts[12:] == (True, number)
    assert result["noted"] == ("replace", "latin-1", True, "backslashreplace")
    assert result["refused"]
    assert tc.run(Task("import sys\ne = sys.stdout.errors", pull="e"), block=True)["e"] == "backslashreplace"


def test_a_task_leaves_the_descriptors_as_they_were(tc: TaskClient) -> None:
    for leave in (
        "os.dup2(os.open('/dev/null', os.O_WRONLY), 1); os.dup2(1, 2)",
        "os.close(1)",
        "os.close(2)",
        "r, w = os.pipe(); os.dup2(w, 1); os.dup2(w, 2); os.close(w)",
    ):
        tc.run(Task(IMPORTS + leave + "; where = os.getpid()"), block=True)
        ids = [tc.run(Task(IMPORTS + "print('a'); os.system('echo b; echo c >&2')")) for _ in range(4)]
        tc.barrier(ids, timeout=DEADLINE_S)
        for task_id in ids:
            result = tc.get_task_result(task_id)
            assert (result.stdout, result.stderr) == ("a\nb\n", "c\n")


LATE = """
import subprocess, threading, time, os, sys
def late():
    go.wait(); print("late in Python"); sys.stdout.buffer.write(b"late bytes\\n"); print("late", file=sys.stderr)
go = threading.Event(); thread = threading.Thread(target=late); thread.start()
child = subprocess.Popen(["sh", "-c", "read x; echo late child; echo late child >&2"], stdin=subprocess.PIPE)
os.system("(while [ -e {gate} ]; do sleep 0.02; done; echo late grandchild; echo late grandchild >&2) &")
print("now")
"""


def test_what_comes_after_the_end_of_a_task_is_not_the_next_ones(farm: Farm, tmp_path: object) -> None:
    gate = f"{tmp_path}/gate"
    open(gate, "w").close()
    with farm.task_client() as tc:
        first = tc.run(Task(LATE.format(gate=gate)), block=True)
        assert first.stdout == "now\n"
        code = (
            "print('mine'); go.set(); thread.join(); child.communicate(b'x\\n'); os.unlink(gate); time.sleep(0.3)"
            "; print('still mine')"
        )
        second = tc.run(Task(code, push={"gate": gate}, requires={"id": first.engineid}), block=True)
        assert (second.failure, second.stdout, second.stderr) == (None, "mine\nstill mine\n", "")
        third = tc.run(Task("os.system('echo child'); print('last')", requires={"id": first.engineid}), block=True)
        assert (third.stdout, third.stderr) == ("child\nlast\n", "")


def test_an_item_that_forks_prints_once(tc: TaskClient) -> None:
    def f(n: int) -> int:
        import os

        print("item", n, flush=True)
        os.system(f"echo child {n}")
        return n

    ids = [tc.run(MapTask(f, (n,))) for n in range(4)]
    tc.barrier(ids, timeout=DEADLINE_S)
    for n, task_id in enumerate(ids):
        assert tc.get_task_result(task_id, raw=False).stdout == f"item {n}\nchild {n}\n"


@pytest.mark.parametrize("module", ["tqdm", "tqdm.auto", "tqdm.notebook"])
def test_a_bar_ends_whole(tc: TaskClient, module: str) -> None:
    pytest.importorskip("tqdm")
    code = f"import sys\nfrom {module} import tqdm\nfor f in sys.stdout, sys.stderr:\n    list(tqdm(range(5), file=f))"
    result = tc.run(Task(code), block=True)
    assert (result.failure, result.outputs) == (None, [])
    for text in (result.stdout, result.stderr):
        assert text.endswith("\n")
        assert "5/5 [" in text.rpartition("\r")[2]


def test_a_warning_is_shown_once_per_task(tc: TaskClient) -> None:
    def warn() -> None:
        import warnings

        for _ in range(3):
            warnings.warn("mind the gap", stacklevel=1)

    ids = [tc.run(MapTask(warn)) for _ in range(4)]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert [tc.get_task_result(each, raw=False).stderr.count("UserWarning") for each in ids] == [1, 1, 1, 1]


def speak(n: int) -> int:
    import os
    import sys

    if n % 10 == 3:
        print("item", n)
        os.system(f"echo child of {n}")
        print("again", n)
    if n % 10 == 5:
        os.system(f"echo only the child of {n}; echo warned >&2")
    if n % 10 == 7:
        print("careful", n, file=sys.stderr)
    return n * n


def test_what_items_of_a_map_print_is_theirs(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    values = tc.map(speak, range(200))
    assert values == [n * n for n in range(200)]
    for n in range(200):
        spoken = {3: f"item {n}\nchild of {n}\nagain {n}\n", 5: f"only the child of {n}\n"}
        assert values.stdout[n] == spoken.get(n % 10, "")
        assert values.stderr[n] == {5: "warned\n", 7: f"careful {n}\n"}.get(n % 10, "")
    assert capsys.readouterr() == ("", "")
    assert tc.map(speak, range(8), stream=True).stdout[3].startswith("item 3\n")
    shown = capsys.readouterr()
    of_three = ["[3] again 3", "[3] child of 3", "[3] item 3"]
    assert sorted(shown.out.splitlines()) == [*of_three, "[5] only the child of 5"], "chunks end in any order"
    assert "[3] item 3\n[3] child of 3\n[3] again 3\n" in shown.out
    assert sorted(shown.err.splitlines()) == ["[5] warned", "[7] careful 7"]
    for _ in range(10):  # whichever item ends last
        assert list(tc.imap(speak, range(4), stream=True)) == [0, 1, 4, 9]
        assert capsys.readouterr().out == "[3] item 3\n[3] child of 3\n[3] again 3\n"
    silent = tc.map(abs, range(3))
    assert (silent.stdout, silent.stderr) == (["", "", ""], ["", "", ""])


BY_DESCRIPTOR = {
    "os.write": "os.write(1, b'item %d\\n' % n)",
    "os.write after print": "print('item', n, end=''); os.write(1, b'\\n')",
    "os.writev": "os.writev(1, [b'item %d\\n' % n])",
    "C": "ctypes.CDLL(None).puts(b'item %d' % n)",
    "buffer": "sys.stdout.buffer.write(b'item %d\\n' % n)",
    "a forked child": "pid = os.fork()\n        if pid == 0:\n            os.write(1, b'item %d\\n' % n)\n"
    "            os._exit(0)\n        os.waitpid(pid, 0)",
}


@pytest.mark.parametrize("way", BY_DESCRIPTOR)
@pytest.mark.parametrize("items", [1, 2, 301])
def test_what_an_item_writes_to_a_descriptor_is_its_own(tc: TaskClient, way: str, items: int) -> None:
    every = 1 if way == "C" else 3  # quick items that run together with others that print in C are not told apart
    names: dict[str, Any] = {"__name__": "__main__"}
    code = (
        f"import ctypes, os, sys\ndef speak(n):\n    if n % {every} == 0:\n        {BY_DESCRIPTOR[way]}\n    return n"
    )
    exec(code, names)
    found = tc.map(names["speak"], range(items))
    assert found.stdout == [f"item {n}\n" if n % every == 0 else "" for n in range(items)]


def test_items_that_are_tasks_of_their_own_too(tc: TaskClient) -> None:
    async def speak_later(n: int) -> int:
        print("item", n)
        return n

    values = tc.map(speak_later, range(3))
    assert (values, values.stdout) == ([0, 1, 2], ["item 0\n", "item 1\n", "item 2\n"])
    assert tc.mapper(retries=1).map(speak, [3]).stdout == ["item 3\nchild of 3\nagain 3\n"]  # type: ignore[attr-defined]


CHILD = """print("begin"); print("x" * 900_000); print("end")"""
FLOODS = {
    "os.write": "import os\nos.write(1, b'begin\\n' + b'x' * 900_000 + b'\\nend\\n')",
    "a child": f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CHILD!r}])",
    "python": CHILD,
    "both": ("import os\nprint('begin', flush=True)\nos.write(1, b'x' * 800_000)\nprint('x' * 100_000)\nprint('end')"),
}


@pytest.mark.parametrize("way", FLOODS)
def test_the_number_of_the_characters_that_were_left_out_is_true(tc: TaskClient, way: str) -> None:
    text = tc.run(Task(FLOODS[way]), block=True).stdout
    gap = re.fullmatch(r"(begin\nx*)\n\[\.\.\. (\d+) characters left out \.\.\.\]\n(x*\nend\n)", text)
    assert gap is not None, text[-200:]
    assert len(gap[1]) + int(gap[2]) + len(gap[3]) == len("begin\n" + 900_000 * "x" + "\nend\n")


def test_a_flood_of_letters_of_several_bytes_has_its_gap_between_its_beginning_and_its_end(tc: TaskClient) -> None:
    code = "import os\nos.write(1, ('begin\\n' + '漢' * 200_000 + '\\nend\\n').encode())\nprint('after')"
    text = tc.run(Task(code), block=True).stdout
    assert re.fullmatch(
        r"begin\n漢*(\\x..)*\n\[\.\.\. \d+ characters left out \.\.\.\]\n(\\x..)*漢*\nend\nafter\n", text
    )
