"""What a program sets in its modules and in libraries, whatever their sources say: told when a function is packed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

DATA = "import dataclasses as d\n@d.dataclass\nclass S:\n    t: dict = d.field(default_factory=dict)\ns = S()"
FILLED = "class S:\n    def __init__(self):\n        self.o = {'a': 1}\n        self.n = 1\n"
PARSER = """
import argparse
def read():
    p = argparse.ArgumentParser()
    p.add_argument('-n', default=3)
    return p.parse_args([])
"""
MODULES = {
    # name: (source of the module m, statement of the script, what is told)
    "field": (DATA, "m.s.t['x'] = 1", "s.t"),
    "attribute": (f"{FILLED}s = S()", "m.s.o['a'] = 2", "s.o"),
    "replaced": (f"{FILLED}s = S()", "m.s.o = {}", "s.o"),
    "class": ("class C:\n    names = []", "m.C.names.append('q')", "C.names"),
    "arguments": ("class S:\n    def __init__(self, n): self.n = n\ns = S(2)", "m.s.n = 3", "s.n"),
    "inherited": ("class B:\n    n = 1\nclass S(B): pass\ns = S()", "m.s.n = 3", "s.n"),
    "array": ("import numpy as np\nT = np.zeros(3)", "m.T[0] = 5", "T"),
    "computed": ("N = 2 * 3", "m.N = 7", "N"),
    "condition": ("import sys\nif sys.argv: N = 1\nelse: N = 2", "m.N = 5", "N"),
    "member": ("import enum\nclass E(enum.Enum):\n    A = 1\n    B = 2\nMODE = E.A", "m.MODE = m.E.B", "MODE"),
    "table": ("def one(x): return 1\ndef two(x): return 2\nH = {'a': one}", "m.H['a'] = m.two", "H"),
    "imported": (f"{FILLED}s = S()", "from m import s; s.n = 5", "s.n"),
    "parsed": (f"{PARSER}args = None\ndef parse():\n    global args\n    args = read()", "m.parse()", "args"),
    "taken over": (f"{PARSER}{FILLED}s = S()\ndef parse():\n    found = read()\n    s.n = found.n", "m.parse()", "s.n"),
    "loaded": ("import json\nC = {}\ndef load(t):\n    C.update(json.loads(t))", "m.load('{\"a\": 1}')", "C"),
    "each": ("C = {}\ndef load(d):\n    for k, v in d.items(): C[k] = v", "m.load({'a': 1})", "C"),
    "given": ("N = 1\ndef init(n=None):\n    global N\n    if n is not None: N = int(n)", "m.init(3)", "N"),
    "several": ("X = Y = 1\ndef init(x):\n    global X\n    X, z = x, 1", "m.init(3)", "X"),
    "setattr": (f"{FILLED}s = S()\ndef set_(**k):\n    for n, v in k.items(): setattr(s, n, v)", "m.set_(n=5)", "s"),
    "method": (f"{FILLED}    def load(self, n): self.n = float(n)\ns = S()", "m.s.load(3)", "s.n"),
    "flag": ("V = False\ndef verbose():\n    global V\n    V = True", "m.verbose()", "V"),
    "in main": ("T = [*range(3)]", "def main(): m.T[0] = 5\nmain()", "T"),
    "run by": ("T = [*range(3)]", "async def main(): m.T[0] = 5\nasyncio.run(main())", "T"),
    "by an object": ("T = [*range(3)]", "class App:\n    def run(self): m.T[0] = 5\nApp().run()", "T"),
    "two modules": ("T = [*range(3)]\nimport other", "def go():\n    m.other.set_up(m)\ngo()", "T"),
    # what modules do for themselves, and what has not happened
    "counter": ("n = [0][0]\ndef f():\n    global n\n    n = n + 1", "m.f()", ""),
    "cache": ("C = dict([])\ndef f(k):\n    if k not in C: C[k] = k * 2\n    return C[k]", "m.f(3)", ""),
    "filled": ("C = dict([])\ndef f(k):\n    v = k * 2\n    C[k] = v\n    return v", "m.f(3)", ""),
    "lazy": ("C = [None][0]\ndef get():\n    global C\n    if C is None: C = {'a': 1}\n    return C", "m.get()", ""),
    "best": ("b = [0][0]\ndef f(k):\n    global b\n    if k > b: b = k", "m.f(3)", ""),
    "last": ("import time\n_t = [0][0]\ndef f():\n    global _t\n    _t = time.time()", "m.f()", ""),
    "history": ("h = [*()]\ndef f(k): h.append(k)", "m.f(3)", ""),
    "records": (f"{FILLED}    def note(self, x):\n        self.n += 1\n        self.o = x\ns = S()", "m.s.note(1)", ""),
    "state": (f"{FILLED}    def f(self, x):\n        self.n += 1\n        self.last = x\ns = S()", "m.s.f(1)", ""),
    "branch": ("N = 2 * 3", "if len(sys.argv) > 9: m.N = 7", ""),
    "passed on": ("T = [*range(3)]", "def work(x): m.T[0] = x\nlist(map(work, ()))", ""),
    "later": ("N = 2 * 3", "tell()\nm.N = 7", ""),
}  # fmt: skip
SCRIPT = """
import asyncio, json, sys, warnings
import m
from ipytaskfarm.serialization.pack import pack_function
def use():
    return {uses}
def tell():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pack_function(use)
    print(json.dumps([str(each.message) for each in caught]))
    sys.exit()
{statement}
tell()
"""
LIBRARIES = {
    "calendar.setfirstweekday(6)": "calendar.monthcalendar(2024, 1)",
    "xml.etree.ElementTree.register_namespace('q', 'http://q')": "xml.etree.ElementTree.Element('a')",
    "csv.register_dialect('semi', delimiter=';')": "csv.reader([], 'semi')",
    "json.decoder.BACKSLASH['q'] = 'x'": "json.loads('1')",
    "json._default_encoder = json.JSONEncoder(indent=2)": "json.dumps([1])",
    "from calendar import setfirstweekday; setfirstweekday(6)": "calendar.monthcalendar(2024, 1)",
    "with calendar.different_locale('C'): tell()": "calendar.month_name",
    "parser = calendar.Calendar(); parser.setfirstweekday(6)": "",
    "calendar.weekday(2024, 1, 1)": "",
    "x = json.JSONEncoder(); x.indent = 3": "",
}


def run_all(folder: Path, programs: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Return what each of these programs, of name and content of its files, is told."""
    started = {}
    for name, files in programs.items():
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text)
    for name in programs:
        started[name] = subprocess.Popen(
            [sys.executable, folder / name / "script.py"],
            stdout=subprocess.PIPE,
            env={**os.environ, "HOME": str(folder)},
        )
    return {name: json.loads(process.communicate(timeout=100)[0]) for name, process in started.items()}


@pytest.mark.parametrize("part", range(4))
def test_what_a_program_sets_in_its_modules_is_told(tmp_path: Path, part: int) -> None:
    cases = dict(list(MODULES.items())[part::4])
    programs = {}
    for name, (source, statement, _) in cases.items():
        uses = ", ".join(f"m.{each}" for each in ("s", "C", "T", "N", "MODE", "H", "args", "X", "V"))
        script = SCRIPT.format(uses=uses, statement=textwrap.dedent(statement))
        other = "def set_up(module):\n    import m\n    m.T[0] = 9\n"
        programs[name] = {"m.py": source, "script.py": script, "other.py": other}
    for name, told in run_all(tmp_path, programs).items():
        expected = cases[name][2]
        assert [each.split()[0] for each in told] == ([f"m.{expected}"] if expected else []), (name, told)


def test_what_a_program_sets_in_libraries_is_told_where_they_are_used(tmp_path: Path) -> None:
    programs = {}
    for number, (statement, use) in enumerate(LIBRARIES.items()):
        imports = "import calendar, csv, xml.etree.ElementTree"
        script = SCRIPT.format(uses=use or "calendar, json", statement=f"{imports}\n{statement}")
        programs[str(number)] = {"m.py": "", "script.py": script}
    told = run_all(tmp_path, programs)
    for number, (statement, use) in enumerate(LIBRARIES.items()):
        found = told[str(number)]
        assert len(found) == bool(use), (statement, found)
        assert not use or statement.rpartition("; ")[2].partition(": ")[0] in found[0], found
