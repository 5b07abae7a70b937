"""Settings of the process that modules make while they are imported, and for how long they hold."""

from __future__ import annotations

import builtins
import contextvars
import decimal
import sys
import types
from typing import Any

import pytest

from ipytaskfarm.serialization.import_settings import ImportSettings, ProcessSetting, merge_lists, merge_names


@pytest.mark.parametrize(
    ("before", "after", "present", "merged"),
    [
        ("ab", "xab", "abc", "xabc"),
        ("ab", "abx", "cab", "cabx"),
        ("ab", "b", "cab", "cb"),
        ("ab", "ba", "abc", "bac"),
        ("ab", "x", "abc", "xc"),
        ("", "x", "abc", "xabc"),
        ("ab", "axb", "ab", "abx"),
        ("abc", "xcab", "abcd", "xcabd"),
        ("ab", "ab", "ba", "ba"),
    ],
)
def test_a_change_of_a_list_is_made_in_another_list(before: str, after: str, present: str, merged: str) -> None:
    assert "".join(merge_lists(list(before), list(after), list(present))) == merged


def test_a_change_of_names_leaves_others_alone() -> None:
    assert merge_names({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}, {"a": 5}) == {"a": 5, "b": 3, "c": 4}


class Process:
    """A process with two settings, and modules that change them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[str, Any] = {"limit": 1, "handlers": []}
        self.settings = ImportSettings()
        self.settings.watch(
            {
                "limit": ProcessSetting(lambda: self.values["limit"], lambda value: self.values.update(limit=value)),
                "handlers": ProcessSetting(
                    lambda: list(self.values["handlers"]), lambda value: self.values.update(handlers=value), merge_lists
                ),
            }
        )
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(builtins, "process", self, raising=False)

    def load(self, name: str, body: str) -> types.ModuleType:
        module = types.ModuleType(name)
        self._monkeypatch.setitem(sys.modules, name, module)
        self.settings.run(compile(body, name, "exec"), vars(module), contextvars.copy_context())
        return module

    def take(self, module: types.ModuleType) -> None:
        del sys.modules[module.__name__]
        self.settings.move()

    def give(self, module: types.ModuleType) -> None:
        sys.modules[module.__name__] = module
        self.settings.move()

    def end_task(self, base: dict[str, Any]) -> None:
        """Restore the baseline, which `base` is, and let the settings of modules come over it."""
        self.values.update(base)
        self.settings.adopt()
        base.update(self.values)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(monkeypatch)


def test_settings_go_and_come_with_their_module(process: Process) -> None:
    module = process.load("sets", "process.values['limit'] = 5")
    assert process.settings.is_due()
    process.end_task(base := {"limit": 1})
    assert (process.values["limit"], process.settings.is_due()) == (5, False)
    process.take(module)
    assert (process.values["limit"], process.settings.is_due()) == (1, True)
    process.end_task(base)
    assert process.values["limit"] == 1
    process.give(module)
    assert process.values["limit"] == 5
    process.end_task(base)
    assert process.values["limit"] == 5


def test_each_module_adds_to_a_list(process: Process) -> None:
    first = process.load("first", "process.values['handlers'] = ['a']")
    second = process.load("second", "process.values['handlers'] = ['b', *process.values['handlers']]")
    base: dict[str, Any] = {"handlers": []}
    process.end_task(base)
    assert process.values["handlers"] == ["b", "a"]
    process.take(first)
    assert process.values["handlers"] == ["b"]
    process.end_task(base)
    process.take(second)
    assert process.values["handlers"] == []


def test_what_the_task_has_set_itself_is_its_own(process: Process) -> None:
    process.values["limit"] = 7  # by the task that imports the module then
    module = process.load("sets", "process.values['limit'] = 5")
    process.values["limit"] = 9
    process.settings.move()
    assert process.values["limit"] == 9
    process.end_task(base := {"limit": 1})
    assert process.values["limit"] == 5
    process.take(module)
    process.end_task(base)
    assert process.values["limit"] == 1


def test_what_is_set_by_hand_is_no_modules(process: Process) -> None:
    module = process.load("sets", "process.values['limit'] = 5")
    process.end_task({"limit": 1})
    process.values["limit"] = 6
    process.settings.renewed()
    process.take(module)
    assert process.values["limit"] == 6
    process.give(module)
    assert process.values["limit"] == 6


def test_an_import_by_hand_sets_for_the_module_alone(process: Process) -> None:
    module = process.load("sets", "process.values['limit'] = 5")
    process.settings.renewed()
    assert (process.values["limit"], process.settings.is_due()) == (5, False)
    process.take(module)
    assert process.values["limit"] == 1


def test_a_module_that_cannot_be_imported_leaves_nothing(process: Process) -> None:
    with pytest.raises(ZeroDivisionError):
        process.load("fails", "process.values['limit'] = 5\n1/0")
    assert process.settings.records == []


def test_what_belongs_to_the_context_is_set_in_each_run(process: Process) -> None:
    variable = contextvars.ContextVar[int]("variable", default=0)
    vars(process)["variable"] = variable

    def body() -> None:
        process.load("sets", "import decimal\nprocess.variable.set(3)\ndecimal.setcontext(decimal.Context(prec=5))")
        assert (variable.get(), decimal.getcontext().prec) == (3, 5)

    def again() -> None:
        process.settings.put_variables()
        assert (variable.get(), decimal.getcontext().prec) == (3, 5)
        decimal.getcontext().prec = 6

    contextvars.copy_context().run(body)
    for _ in range(2):
        contextvars.copy_context().run(again)
    assert (variable.get(), decimal.getcontext().prec) == (0, 28)
