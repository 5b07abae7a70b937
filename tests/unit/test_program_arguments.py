"""Which modules read the arguments of the program while they are imported, and what they get."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from ipytaskfarm import add_dependency
from ipytaskfarm.serialization.module_bundles import bundle_of
from ipytaskfarm.serialization.program_settings import as_arguments, program_arguments, readers_of_arguments

PARSER = b"import argparse\nparser = argparse.ArgumentParser()\n"
CALLED = b"def options():\n    return parser.parse_args()\n"


@pytest.mark.parametrize(
    "source",
    [
        PARSER + b"args = parser.parse_args()",
        PARSER + b"args, rest = parser.parse_known_args()",
        PARSER + CALLED + b"args = options()",
        PARSER + CALLED + b"def all_of_it(): return vars(options())\nargs = all_of_it()",
        b"import sys\nN = int(sys.argv[1])",
        b"from sys import argv\nN = len(argv)",
        b"class Settings:\n    import sys\n    fast = '--fast' in sys.argv",
        b"from docopt import docopt\nargs = docopt(__doc__)",
    ],
)
def test_a_module_that_reads_arguments(source: bytes) -> None:
    assert readers_of_arguments({"m": source, "other": b"import m"}) == {"m"}


@pytest.mark.parametrize(
    "source",
    [
        PARSER + CALLED,
        PARSER + CALLED + b"if __name__ == '__main__':\n    print(options())",
        b"import sys\ndef main(): return sys.argv\ncommands = {'main': main}",
        b"import sys\nsys.argv = []",
        b"no python, with sys.argv",
    ],
)
def test_a_module_that_may_read_arguments_later(source: bytes) -> None:
    assert readers_of_arguments({"m": source}) == set()


def test_the_module_that_calls_anothers_function_reads_them() -> None:
    sources = {
        "common": PARSER + CALLED,
        "settings": b"import common\nargs = common.options()",
        "user": b"import common",
    }
    assert readers_of_arguments(sources) == {"settings"}


def test_a_bundle_has_the_present_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reads_arguments.py").write_text("import sys\nN = sys.argv[1:]\n")
    (tmp_path / "without_arguments.py").write_text("import sys\ndef main(): return sys.argv\n")
    monkeypatch.syspath_prepend(tmp_path)
    add_dependency(str(tmp_path))
    for name in ("reads_arguments", "without_arguments"):
        importlib.import_module(name)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)
    monkeypatch.setattr(sys, "argv", ["script.py", "5"])
    five, plain = bundle_of("reads_arguments"), bundle_of("without_arguments")
    assert five.members[0].arguments == ("script.py", "5")
    assert bundle_of("reads_arguments") is five
    sys.argv[1] = "6"
    assert bundle_of("without_arguments") is plain
    six = bundle_of("reads_arguments")
    assert (six.members[0].arguments, six.digest != five.digest) == (("script.py", "6"), True)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    assert (program_arguments(), bundle_of("reads_arguments").members[0].arguments) == ((), ())
    monkeypatch.setattr(sys, "argv", ["kernel", "-f", "connection.json"])
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert program_arguments() == ()


def test_arguments_are_put_back() -> None:
    before = sys.argv
    with as_arguments(("a", "b")):
        assert sys.argv == ["a", "b"]
    with as_arguments(()):
        assert sys.argv is before
    with pytest.raises(SystemExit), as_arguments(("a",)):
        sys.exit()
    assert sys.argv is before
