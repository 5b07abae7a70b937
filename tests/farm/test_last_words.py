"""Test that the failure and `explain` contain the output of a killed engine."""

from __future__ import annotations

import pytest

from ipytaskfarm import MultiEngineClient, Task, TaskClient, errors
from ipytaskfarm.client import TaskResult
from tests.support.farms import DEADLINE_S

pytestmark = pytest.mark.farm

DEATHS = {
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "SIGSEGV": "import ctypes; ctypes.string_at(0)",
    "_exit": "os._exit(3)",
    "abort": "os.abort()",
}
SPEECHES = {
    "print": "print('famous', 'words')",
    "flush": "print('famous words', end='', flush=True)",
    "stderr": "print('famous words', file=sys.stderr)",
    "descriptor": "os.write(1, b'famous words')",
    "error descriptor": "os.write(2, b'famous words')",
    "child": "os.system('echo famous words')",
    "C code": "ctypes.CDLL(None).puts(b'famous words')",
    "logging": "logging.warning('famous words')",
}


def lost(tc: TaskClient, code: str) -> TaskResult:
    task = tc.run(Task(f"import ctypes, logging, os, sys\n{code}", retries=0))
    tc.barrier(task, timeout=DEADLINE_S)
    result: TaskResult = tc.get_task_result(task, raw=False)
    assert result.reason == "engine lost"
    return result


def told(tc: TaskClient, result: TaskResult) -> str:
    assert result.failure is not None
    message = result.failure.getErrorMessage()
    assert "its last output: " in message
    assert "famous words" in tc.explain(result.taskid)
    return message


@pytest.mark.parametrize("death", DEATHS)
def test_however_it_dies(tc: TaskClient, death: str) -> None:
    result = lost(tc, f"print('famous words')\n{DEATHS[death]}")
    assert told(tc, result).count("famous words") == 1


@pytest.mark.parametrize("speech", SPEECHES)
def test_however_it_speaks(tc: TaskClient, speech: str) -> None:
    result = lost(tc, f"{SPEECHES[speech]}\nos.kill(os.getpid(), 9)")
    assert told(tc, result).count("famous words") == 1


def test_in_the_order_in_which_it_was_written_and_nothing_of_earlier_tasks(tc: TaskClient) -> None:
    earlier = "import os, sys; print('earlier'); os.system('echo earlier; echo earlier >&2')"
    tc.barrier([tc.run(Task(earlier)) for _ in range(6)], timeout=DEADLINE_S)
    code = "print('1')\nos.system('echo 2')\nprint('3')\nos.write(1, b'4\\n')\nprint('5')\nos.system('echo 6')\n"
    message = told(tc, lost(tc, f"{code}print('famous words')\nos._exit(1)"))
    spoken = message.partition("its last output: ")[2].splitlines()
    assert spoken == ["1", "2", "3", "4", "5", "6", "famous words"]


def test_of_a_flood_the_end_is_told(tc: TaskClient) -> None:
    code = "for n in range(50_000): print('line', n)\nprint('famous words')\nos._exit(1)"
    message = told(tc, lost(tc, code))
    assert "line 49999\nfamous words" in message
    assert len(message) < 10_000


def test_a_silent_one_has_no_words_of_others(tc: TaskClient) -> None:
    tc.barrier([tc.run(Task("print('earlier words')")) for _ in range(6)], timeout=DEADLINE_S)
    result = lost(tc, "os._exit(1)")
    assert result.failure is not None
    assert "earlier words" not in result.failure.getErrorMessage()


def test_what_a_command_had_printed_stands_in_its_error(tc: TaskClient, mec: MultiEngineClient) -> None:
    with pytest.raises(errors.CompositeError) as caught:
        mec.execute("print('famous words'); import os; os._exit(1)", targets=0, block=True)
    assert "famous words" in str(caught.value)
    tc.barrier(tc.run(Task("1")), timeout=DEADLINE_S)


@pytest.mark.parametrize("speech", ["stderr", "error descriptor", "child", "logging"])
def test_a_silent_one_has_not_what_the_log_keeps_of_others(tc: TaskClient, speech: str) -> None:
    tc.barrier([tc.run(Task(f"import logging, os, sys\n{SPEECHES[speech]}")) for _ in range(6)], timeout=DEADLINE_S)
    result = lost(tc, "os._exit(1)")
    assert result.failure is not None
    assert "last output" not in result.failure.getErrorMessage()
