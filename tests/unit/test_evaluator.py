"""The evaluator as the controller meets it: a process with two pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

import ipytaskfarm
from ipytaskfarm.core.messages.evaluator import Evaluate, Evaluated, Subject
from ipytaskfarm.core.messages.task_types import Function
from ipytaskfarm.serialization.pack import pack, pack_function
from tests.support.ended import has_ended

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ipytaskfarm.__file__).parents[1])}
COMMAND = [sys.executable, "-W", "error", "-m", "ipytaskfarm.controller.evaluator"]


class Child:
    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=ENVIRONMENT,
        )
        self.number = 0

    def ask(self, function: Function, *subjects: Subject, with_code: bool = True) -> Evaluated:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.number += 1
        question = Evaluate(self.number, function.digest, list(subjects), function.code if with_code else None)
        body = msgspec.msgpack.encode(question)
        self.process.stdin.write(len(body).to_bytes(4, "big") + body)
        self.process.stdin.flush()
        size = int.from_bytes(self.process.stdout.read(4), "big")
        answer = msgspec.msgpack.decode(self.process.stdout.read(size), type=Evaluated)
        assert answer.n == self.number
        assert answer.depend == function.digest
        return answer

    def fits(self, function: Function, *subjects: Subject) -> list[bool]:
        return [verdict.fits for verdict in self.ask(function, *subjects).verdicts]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    found = Child(tmp_path)
    yield found
    found.process.communicate(timeout=60)


def depend(source: str) -> Function:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(source), names)
    return pack_function(names["f"])


def engine(counter: int, **properties: Any) -> Subject:
    packed = pack(properties) if properties else b""
    return Subject(engine=f"a.{counter}", version=counter, facts={"cores": 4, "id": counter}, packed=packed)


def test_facts_and_properties_in_one_dict(child: Child) -> None:
    function = depend("LIMIT = 2\ndef f(p): return p['cores'] == 4 and p.get('ram', 0) > LIMIT")
    answer = child.ask(function, engine(0), engine(1, ram=3), engine(2, ram=1))
    assert [(each.engine, each.version, each.fits) for each in answer.verdicts] == [
        ("a.0", 0, False),
        ("a.1", 1, True),
        ("a.2", 2, False),
    ]
    assert not any(each.error for each in answer.verdicts)


def test_code_is_kept(child: Child) -> None:
    function = depend("def f(p): return p['id']")
    assert child.fits(function, engine(0), engine(1)) == [False, True]
    assert [each.fits for each in child.ask(function, engine(5), with_code=False).verdicts] == [True]
    unknown = child.ask(Function("nowhere", b""), engine(1), with_code=False).verdicts[0]
    assert not unknown.fits
    assert "has not come" in unknown.error


def test_each_call_has_a_copy(child: Child) -> None:
    function = depend("def f(p):\n    p['cores'] = 0\n    p['seen'].append(1)\n    return len(p['seen']) == 1")
    assert child.fits(function, *[engine(3, seen=[])] * 3) == [True] * 3


def test_what_goes_wrong_is_false_and_said(child: Child) -> None:
    raising = child.ask(depend("def f(p):\n    return 1 / 0"), engine(1)).verdicts[0]
    assert not raising.fits
    assert raising.error.startswith("ZeroDivisionError: division by zero")
    assert "in f" in raising.error
    assert not child.fits(depend("def f(p): raise SystemExit"), engine(1))[0]
    assert not child.fits(depend("def f(p): return missing"), engine(1))[0]
    assert not child.fits(Function("broken", b"\x80\x05nonsense"), engine(1))[0]
    assert (
        "ValueError" in child.ask(depend("def f(p):\n    raise ValueError('x' * 10**6)"), engine(1)).verdicts[0].error
    )
    assert child.fits(depend("def f(p): return True"), engine(1)) == [True]


def test_prints_and_reads_do_not_break_the_protocol(child: Child) -> None:
    function = depend("""
        def f(p):
            import os, sys
            print("hello", flush=True)
            os.write(1, b"raw")
            os.system("echo child")
            return sys.stdin.read() == "" and os.read(0, 1) == b""
    """)
    assert child.fits(function, engine(1)) == [True]
    out, err = child.process.communicate(timeout=60)
    assert out == b""
    assert b"hello" in err
    assert b"raw" in err
    assert child.process.returncode == 0


def test_it_says_what_it_is(child: Child) -> None:
    child.fits(depend("def f(p): return True"), engine(1))
    assert psutil.Process(child.process.pid).cmdline()[0] == "ipytaskfarm evaluator"


def test_it_ends_with_its_parent_even_in_a_function_that_hangs(tmp_path: Path) -> None:
    function = depend("def f(p):\n    import time\n    open('begun', 'w').close()\n    time.sleep(600)")
    body = msgspec.msgpack.encode(Evaluate(1, function.digest, [engine(1)], function.code))
    (tmp_path / "question").write_bytes(len(body).to_bytes(4, "big") + body)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "child.stdin.write(open('question', 'rb').read()); child.stdin.flush()\n"
            "print(child.pid, flush=True); child.wait()",
            *COMMAND,
        ],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_for((tmp_path / "begun").exists)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(60)
    parent.stdout.close()
    wait_for(lambda: has_ended(child))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
