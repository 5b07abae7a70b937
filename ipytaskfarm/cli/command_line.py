"""Parse a command line into a configuration, with an understandable sentence for each mistake.

traitlets has its own parser over argparse, but its errors speak of traits, instances and unrecognised arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from traitlets import CFloat, CInt, Enum, Float, Int, List, TraitError, TraitType
from traitlets.config import Config

from ipytaskfarm.core.text import did_you_mean, shown

UNITS = {"SECONDS": "a number of seconds", "PORT": "the number of a port", "N": "a whole number", "SHARE": "a share"}
"""Placeholder of a flag's value in the usage line -> what is expected."""

_CHOOSES = frozenset({"NAME", "ID", "IDS", "KEY", "WHEN", "TIME"})
"""Placeholders of values that choose something. An empty one, from an unset variable of a script, would choose all."""


class UsageError(Exception):
    """Raised for a wrong command line; the text names the mistake."""


@dataclass(frozen=True)
class Flag:
    """A flag with a value, and the trait that it sets."""

    owner: str
    name: str
    trait: TraitType[Any, Any]

    @property
    def metavar(self) -> str:
        """Return the placeholder of the value in usage lines."""
        return str(self.trait.metadata.get("metavar", self.name.upper()))


@dataclass(frozen=True)
class Switch:
    """A flag without a value, and the values that it sets, by class and trait."""

    sets: Mapping[str, Mapping[str, Any]]


def read_words(words: Sequence[str], known: Mapping[str, Flag | Switch], where: object) -> tuple[Config, list[str]]:
    """Return the settings that the flags of a command line make, and the other words in order.

    Args:
        words: the command line.
        known: the flags by their names, without dashes.
        where: the command; its traits check the values.

    Raises UsageError for an unknown flag, a missing or superfluous value, and a value that does not fit.
    """
    config = Config()
    others: list[str] = []
    given: set[tuple[str, str]] = set()
    rest = iter(words)
    for word in rest:
        if word == "--":
            others += rest
        elif not _is_flag(word):
            others.append(word)
        else:
            dashed, value = _split(word, known)
            flag = known.get(dashed.lstrip("-"))
            if flag is None or (len(dashed) > 2) is not dashed.startswith("--"):
                names = [_dashed(name) for name in known if "." in dashed or "." not in name]
                near = _MEANT.get(dashed) or did_you_mean(dashed, names, "")
                raise UsageError(f"there is no flag {dashed}{near}")
            if isinstance(flag, Switch):
                if value is not None:
                    raise UsageError(f"{dashed} takes no value: {dashed} alone, or not at all")
                for owner, values in flag.sets.items():
                    config[owner].update(values)
                continue
            value = _next_value(dashed, flag, rest, known) if value is None else value
            if not value.strip() and flag.metavar in _CHOOSES:
                raise UsageError(f"{dashed} needs a value: {dashed} {flag.metavar}, not an empty text")
            _put(config, given, dashed, flag, checked_text(dashed, flag, value, where))
    return config, others


_MEANT = dict.fromkeys(("--profile", "--cluster-id", "--profile-dir"), ", did you mean --farm?")
"""A flag of ipyparallel's commands -> the end of the sentence.  Each command knows ``--farm``."""


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not re.fullmatch(r"-\d+(\.\d+)?", word)


def _dashed(name: str) -> str:
    return ("-" if len(name) == 1 else "--") + name


def _split(word: str, known: Mapping[str, Flag | Switch]) -> tuple[str, str | None]:
    """Split a word into a flag with its dashes and the value behind it (``--n=4``, ``-n4``), if there is one."""
    dashed, equals, value = word.partition("=")
    if equals:
        return dashed, value
    if not word.startswith("--") and len(word) > 2 and isinstance(known.get(word[1]), Flag):
        return word[:2], word[2:]
    return word, None


def _next_value(dashed: str, flag: Flag, rest: Iterator[str], known: Mapping[str, Flag | Switch]) -> str:
    value = next(rest, None)
    if value is None or (_is_flag(value) and _split(value, known)[0].lstrip("-") in known):
        raise UsageError(f"{dashed} needs a value: {dashed} {flag.metavar}")
    return value


def _put(config: Config, given: set[tuple[str, str]], dashed: str, flag: Flag, value: Any) -> None:
    key = (flag.owner, flag.name)
    if isinstance(flag.trait, List):
        config[flag.owner][flag.name] = [*config[flag.owner].get(flag.name, []), *value]
    elif key in given:
        raise UsageError(f"{dashed} was given twice, and takes one value")
    else:
        config[flag.owner][flag.name] = value
    given.add(key)


def checked_text(dashed: str, flag: Flag, text: str, where: object) -> Any:
    """Return the value of a flag from its text; a list with one value for a flag that may be given several times."""
    if isinstance(flag.trait, List):
        return [text]
    try:
        value = flag.trait.from_string(text)
    except (ValueError, TraitError):
        value = text
    return checked_value(dashed, flag, value, where)


def checked_value(as_written: str, flag: Flag, value: Any, where: object) -> Any:
    """Return a value as its trait stores it.

    Raises UsageError, with the name `as_written`, if the value does not fit.
    """
    try:
        return flag.trait._validate(where, value)
    except (TraitError, ValueError):
        raise UsageError(f"{as_written} {_complaint(flag, value)}") from None


def _complaint(flag: Flag, value: Any) -> str:
    trait = flag.trait
    if isinstance(trait, Enum):
        choices = [str(each) for each in trait.values or () if each is not None]
        return f"takes one of {', '.join(choices)}, not {shown(value)}{did_you_mean(value, choices)}"
    if isinstance(trait, Int | CInt | Float | CFloat):
        whole = isinstance(trait, Int | CInt)
        if isinstance(value, int | float) and not (whole and isinstance(value, float)):
            low = trait.min is not None and value < trait.min
            return f"takes at {f'least {trait.min}' if low else f'most {trait.max}'}, not {shown(value)}"
        expected = UNITS.get(flag.metavar, "a whole number" if whole else "a number")
        return f"takes {expected}, not {shown(value)}"
    expected = "a list" if isinstance(trait, List) else "text" if trait.default_value in (None, "") else "another value"
    return f"takes {expected}, not {shown(value)}"
