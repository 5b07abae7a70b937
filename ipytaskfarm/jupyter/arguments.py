"""Parses the lines of magics, and says in a sentence what is wrong with one."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from keyword import iskeyword
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser
from IPython.utils.process import arg_split  # type: ignore[attr-defined]

from ..core.text import did_you_mean

_KINDS = {"int": "a whole number", "float": "a number"}
_CODE = "; code goes into a cell that begins with %%task"
_MEANT = {
    "%task": {
        **dict.fromkeys(("cancel", "kill", "stop"), "abort"), **dict.fromkeys(("wait", "join"), "barrier"),
        **dict.fromkeys(("clear", "delete"), "remove"), **dict.fromkeys(("output", "stdout", "show"), "result"),
        "errors": "failures", "why": "explain", "list": "%tasks",
    },
    "%taskfarm": {
        "scale": "!ipytaskfarm engines add N", "engines": "!ipytaskfarm engines", "web": "!ipytaskfarm web",
        "view": "tc.view()", "list": "!ipytaskfarm list", "jobs": "%task jobs", "restart": "stop, then start",
        "help": "%taskfarm?", "pause": "%task pause", "resume": "%task resume",
    },
}  # fmt: skip
"""Magic -> a word that is none of its actions -> what does it."""


def parse_line(magic: Any, name: str, line: str) -> argparse.Namespace:
    """Return the arguments in a magic's line, for example ``parse_line(self.tasks, "%tasks", "--last 3")``.

    Raises UsageError, which names the argument, what was expected and the nearest one.
    """
    parser: MagicArgumentParser = magic.parser
    return _parse(parser, name, lambda: parser.parse_known_args(arg_split(line)))


def parse_intermixed_line(magic: Any, name: str, line: str) -> argparse.Namespace:
    """Return the arguments in a line in which options may stand among the words."""
    parser: MagicArgumentParser = magic.parser
    return _parse(parser, name, lambda: parser.parse_known_intermixed_args(arg_split(line)))


def check_variable(name: str | None) -> None:
    """Raise UsageError if a name, to which a magic is to bind its result, is no name of a variable."""
    if name is not None and (not name.isidentifier() or iskeyword(name)):
        raise UsageError(f"-o {name}: {name!r} cannot be the name of a variable")


def _parse(
    parser: MagicArgumentParser, name: str, parse: Callable[[], tuple[argparse.Namespace, list[str]]]
) -> argparse.Namespace:
    parser.exit_on_error = False  # an error comes with the argument that it is about
    try:
        given, unknown = parse()
    except argparse.ArgumentError as error:
        raise UsageError(f"{name}: {_complaint(parser, name, error)}") from None
    except UsageError as error:
        raise UsageError(f"{name}: {_in_words(name, str(error))}") from None
    finally:
        parser.exit_on_error = True
    if unknown:
        raise UsageError(f"{name}: {_unknown(parser, name, unknown[0])}")
    return given


def _unknown(parser: MagicArgumentParser, name: str, word: str) -> str:
    options = [action for action in parser._actions if action.option_strings]
    if word.startswith("-"):
        flags = [flag for action in options for flag in action.option_strings]
        word = word.partition("=")[0]
        near = did_you_mean(word, flags, "") or f"; {name}? shows which there are"
        return f"there is no flag {word}{near}"
    for action in options:
        if action.choices is not None and word in action.choices:
            return f"{word!r} fits nothing, did you mean {action.option_strings[-1]} {word}?"
    return f"{word!r} fits nothing; {name}? shows what there is"


def _in_words(name: str, message: str) -> str:
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing and missing[1].startswith("action"):
        return f"it needs an action; {name}? shows which there are"
    return f"it needs {missing[1]}; {name}? shows how" if missing else message


def _complaint(parser: MagicArgumentParser, name: str, error: argparse.ArgumentError) -> str:
    found = (action for action in parser._actions if argparse._get_action_name(action) == error.argument_name)
    action = next(found, None)
    if action is None:
        return _in_words(name, error.message)
    flag = action.option_strings[-1] if action.option_strings else ""
    wrong = re.match(r"invalid (\w+)(?: value)?: (?:'(.*?)'|(\S+))", error.message)
    if wrong is None:
        value = action.metavar or action.dest.upper()
        return f"{flag} takes a value: {flag} {value}" if error.message == "expected one argument" else error.message
    word = wrong[2] or wrong[3]
    if action.choices is not None:
        choices: Iterable[str] = [str(each) for each in action.choices]
        meant = "" if flag else _MEANT.get(name, {}).get(word, "")
        near = f", did you mean {meant}?" if meant else did_you_mean(word, choices, "")
        each = ", ".join(choices) + (_CODE if name == "%task" and not flag else "")
        return f"there is no {flag or action.dest} {word!r}{near}" + ("" if near else f"; it is one of {each}")
    return f"{flag or action.dest} takes {_KINDS.get(wrong[1], wrong[1])}, not {word!r}"
