"""Test the ``%px`` family: registered only by activation, and together with ipyparallel's in either order."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pytest
from ipyparallel.client.magics import ParallelMagics

from ipytaskfarm import Farm, MultiEngineClient, errors
from ipytaskfarm.client.streams import CommandStream
from tests.support.farms import Gate
from tests.support.shells import Shell, shell_with_magics

pytestmark = pytest.mark.farm


@pytest.fixture
def mec(farm: Farm) -> Iterator[MultiEngineClient]:
    with farm.multiengine_client() as mec:
        mec.reset()
        yield mec


@pytest.fixture
def shell() -> Iterator[Shell]:
    with shell_with_magics() as shell:
        yield shell


@pytest.fixture
def px(shell: Shell, mec: MultiEngineClient) -> Shell:
    shell["mec"] = mec
    cell = shell.ok("mec.activate()")
    assert "%px, %%px, %autopx, %pxresult: engines of farm" in cell.out
    return shell


def test_loading_the_extension_registers_none_of_them(shell: Shell) -> None:
    magics = shell.shell.magics_manager.magics
    assert not {"px", "autopx", "pxresult", "pxconfig", "result"} & magics["line"].keys()
    assert "px" not in magics["cell"]


def test_activating_loads_the_extension(mec: MultiEngineClient, shell: Shell) -> None:
    shell.ok("%unload_ext ipytaskfarm")
    shell["mec"] = mec
    shell.ok("mec.activate()")
    assert shell.ok("%px int(id)").out == "[0] 0\n[1] 1\n"


def test_plain_python_has_no_magics(mec: MultiEngineClient) -> None:
    with pytest.raises(RuntimeError, match="IPython or Jupyter"):
        mec.activate()


def test_px(px: Shell, mec: MultiEngineClient) -> None:
    px.ok("%px a = int(id)")
    assert mec["a"] == [0, 1]
    assert px.ok("%px -a").out == "[0] 0\n[1] -1\n", "the line is code"
    cell = px.ok("%%px\nimport sys\nprint('one')\nprint('two')\nprint('err', file=sys.stderr)\na")
    assert cell.out == "[0] one\n[0] two\n[0] 0\n[1] one\n[1] two\n[1] 1\n"
    assert cell.err == "[0] err\n[1] err\n"
    assert px.ok("%%px -t 1\na").out == "[1] 1\n"
    assert px.ok("%%px --targets 1,0\na").out == "[1] 1\n[0] 0\n"
    cell = px.ok("%%px -t 0\nfrom IPython.display import HTML\nHTML('<i>rich</i>')")
    assert cell.out == "[0]\n"
    assert cell.outputs[0].data["text/html"] == "<i>rich</i>"


def test_not_waiting_and_asking_later(px: Shell) -> None:
    pending = px.ok("%%px -a -o later\n1 + 1").value
    assert pending is None
    assert px["later"].get_result()[0]["number"] > 0
    assert px.ok("%pxresult").out == "[0] 2\n[1] 2\n"
    assert px.ok("%result").out == "[0] 2\n[1] 2\n"
    number = px["later"].get_result()[0]["number"]
    px.ok("%px 7")
    assert px.ok(f"%result {number} -t 0").out == "[0] 2\n", "as in IPython 0.10"
    shown = px.ok("%%px --noblock\n3").value
    assert len(shown.r) == 2
    assert px.ok("%pxresult -t 1").out == "[1] 3\n"

    async def wait() -> Any:
        return await px["later"]

    assert len(asyncio.run(wait())) == 2


def test_local_runs_it_here_too(px: Shell, mec: MultiEngineClient) -> None:
    px.ok("%%px --local\nboth = 'here and there'")
    assert px["both"] == "here and there"
    assert mec["both"] == ["here and there"] * 2


def test_config(px: Shell, mec: MultiEngineClient) -> None:
    px.ok("%pxconfig --targets 1 --noblock")
    assert (mec.targets, mec.block) == ([1], False)
    px.ok("%pxconfig -t all -b")
    assert px.ok("%px int(id)").out == "[0] 0\n[1] 1\n"


def test_autopx(px: Shell, mec: MultiEngineClient) -> None:
    px.ok("%autopx")
    px.ok("x = int(id) + 10\nif x > 10:\n    x += 100")
    assert px.ok("x").out == "[0] 10\n[1] 111\n"
    px.ok("%autopx")
    assert "x" not in px.shell.user_ns
    px.ok("y = 1")
    assert px["y"] == 1
    assert mec["x"] == [10, 111]


def test_errors_are_short_and_name_their_engines(px: Shell) -> None:
    cell = px.fails("%px 1 / int(id)", errors.CompositeError)
    assert cell.out.count("on engine") == 1
    assert "on engine 0: Traceback" in cell.out
    assert cell.out.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "ipytaskfarm" not in cell.out
    assert "ZeroDivisionError" in px.run("%tb").out
    px.fails("%%px -t 9\n1", errors.InvalidEngineID)


def test_a_name_of_the_notebook_is_pushed(px: Shell) -> None:
    px["only_here"] = 5
    cell = px.run("%px y = only_here")
    remedy = "engines have names of their own: mec.push({'only_here': only_here})"
    assert cell.out.count(f"this session has 'only_here', and {remedy}") == 1


def register_ipyparallels(shell: Shell) -> None:
    """Register magics as the activation of a view does."""
    shell.shell.register_magics(ParallelMagics(shell.shell, view=None))


def test_where_ipyparallels_stand_ours_are_refused(shell: Shell, mec: MultiEngineClient) -> None:
    shell.ok("%load_ext ipyparallel")
    register_ipyparallels(shell)
    theirs = shell.shell.find_cell_magic("px")
    shell["mec"] = mec
    cell = shell.run("mec.activate()")
    assert isinstance(cell.error, RuntimeError)
    assert "suffix='_farm'" in str(cell.error)
    assert "force=True" in str(cell.error)
    assert shell.shell.find_cell_magic("px") == theirs
    assert "%px_farm" in shell.ok("mec.activate(suffix='_farm')").out
    assert shell.ok("%px_farm int(id)").out == "[0] 0\n[1] 1\n"
    assert shell.ok("%%px_farm -t 1\nint(id)").out == "[1] 1\n"
    assert shell.shell.find_cell_magic("px") == theirs
    shell.ok("mec.activate(force=True)")
    assert shell.ok("%px int(id)").out == "[0] 0\n[1] 1\n"


def test_ipyparallels_may_come_afterwards(px: Shell) -> None:
    px.ok("mec.activate('_farm')")
    px.ok("%load_ext ipyparallel")
    register_ipyparallels(px)
    assert px.shell.find_cell_magic("px").__module__.startswith("ipyparallel")
    assert px.ok("%px_farm int(id)").out == "[0] 0\n[1] 1\n"
    assert isinstance(px.run("mec.activate()").error, RuntimeError), "they are not ours any more"


def test_activating_again_is_no_trouble(px: Shell) -> None:
    px.ok("mec.activate()")
    px.ok("mec.activate(suffix='2')")
    assert px.ok("%px2 int(id)").out == "[0] 0\n[1] 1\n"


def test_what_came_before_an_error_is_shown_and_shown_again(px: Shell) -> None:
    code = (
        "%%px\nfrom IPython.display import HTML, display\nprint('before', int(id)); display(HTML('<i>table</i>'))\n"
        "import sys; print('warned', file=sys.stderr)\nif int(id): raise ValueError('no')\n'after'"
    )
    for line in (code, "%pxresult"):
        cell = px.run(line)
        assert cell.error is not None
        # IPython's own print of the error follows.
        assert cell.out.startswith("[0] before 0\n[0]\n[0] 'after'\n[1] before 1\n[1]\n")
        assert "ValueError: no" in cell.out
        assert cell.err.startswith("[0] warned\n[1] warned\n")
        assert [output.data["text/html"] for output in cell.outputs if "text/html" in output.data] == [
            "<i>table</i>"
        ] * 2


class Watched(io.StringIO):
    """A stream that opens the gate as soon as both engines have spoken."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def write(self, text: str) -> int:
        count = super().write(text)
        if "[0] begun" in self.getvalue() and "[1] begun" in self.getvalue():
            self._gate.open()
        return count


def test_lines_come_while_the_engines_work(px: Shell, gate: Gate) -> None:
    code = f"import os\nprint('begun'); os.system('echo a child')\n{gate.code}\nprint('done')"
    with contextlib.redirect_stdout(Watched(gate)) as seen:
        px.shell.run_cell_magic("px", "", code)
    lines = seen.getvalue().splitlines()
    assert sorted(lines) == sorted(f"[{n}] {text}" for n in (0, 1) for text in ("begun", "a child", "done"))


def test_an_interrupt_while_output_is_fetched_shows_the_users_line_and_what_goes_on(
    px: Shell, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(stream: CommandStream) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CommandStream, "tick", press)
    cell = px.run(f"%%px\n{gate.code}")
    gate.open()
    assert isinstance(cell.error, KeyboardInterrupt)
    assert "continues on engines [0, 1]: ask for its result again; mec.interrupt() interrupts it" in cell.err
    assert "ipytaskfarm/" not in cell.shown
    monkeypatch.undo()
    px.ok("%pxresult")
