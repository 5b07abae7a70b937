"""The common part of all subcommands: flags, config files, help, and exit codes of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import chain
from textwrap import fill, wrap
from typing import Any, ClassVar, TypeVar

from traitlets import Bool, List, TraitType, Unicode
from traitlets.config import Application, Config
from traitlets.config.loader import LazyConfigValue

from ipytaskfarm.cli.catalog import COMMANDS
from ipytaskfarm.cli.command_line import Flag, Switch, UsageError as UsageError, checked_value, read_words
from ipytaskfarm.cli.printing import print_any_text, safe, width
from ipytaskfarm.core import errors
from ipytaskfarm.core.parsing import parse_ids
from ipytaskfarm.core.text import did_you_mean
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.version import __version__

OK, FAILED, USAGE, STORE, REFUSED = 0, 1, 2, 3, 4
INTERRUPTED = 130
"""The exit code that shells report for a program that SIGINT has ended."""


_SETTINGS = (
    "Each flag that takes a value is also a setting of ipytaskfarm_config.py in Jupyter's config folder"
    " (`jupyter --paths`); --help-all shows the names there."
)


class HelpShown(Exception):
    """Raised when the command line only asks for help."""


_Trait = TypeVar("_Trait", bound=TraitType[Any, Any])


def flag(metavar: str, trait: _Trait, names: str = "") -> _Trait:
    """Make a trait a setting, and a flag that takes a value.

    Args:
        metavar: stands for the value in usage lines.
        trait: the type of the value, its default and its help.
        names: the names of the flag, without dashes; "": the trait's own, with dashes.
    """
    return trait.tag(config=True, metavar=metavar, flag=names)


def switch(text: str, names: str = "", setting: Bool[bool, bool | int] | None = None) -> Bool[bool, bool | int]:
    """Return a setting that is a flag without a value, which sets the opposite of the default.

    Args:
        text: the help of the flag.
        names: as in `flag`.
        setting: the setting, if its default is not False.
    """
    return (Bool(False, help=text) if setting is None else setting).tag(config=True, flag=names, text=text)


def _flag_names(trait: TraitType[Any, Any]) -> tuple[str, ...]:
    return tuple((trait.metadata["flag"] or str(trait.name).replace("_", "-")).split())


def flags_in(owner: type) -> dict[str, Any]:
    """Return the flags of a class: ``Class.trait`` -> trait."""
    return {
        f"{owner.__name__}.{n}": t for n, t in vars(owner).items() if isinstance(t, TraitType) and "flag" in t.metadata
    }


class Command(Application):
    """A subcommand: `read` parses its command line, then `carry_out` runs it."""

    version = __version__
    description: Any = ""
    examples: Any = ""
    arguments: ClassVar[str] = ""
    """The words that may follow the flags, for the usage line; "" allows none."""
    of_action: ClassVar[dict[str, tuple[str, ...]]] = {}
    """For a command of several actions: setting -> the actions that it belongs to. Others have no use for it."""
    raise_config_file_errors = True

    farm = flag("NAME", Unicode("default", help="the farm's name"))
    config_files = flag(
        "FILE", List(Unicode(), help="a config file instead of Jupyter's ipytaskfarm_config.py"), "config"
    )
    concerns_a_farm: ClassVar[bool] = True
    """Whether the command has the flag ``--farm``."""

    aliases: dict[Any, str]
    """Names of a flag -> the ``Class.trait`` that it sets."""
    flags: dict[Any, Any]
    """Names of a flag without a value -> the settings that it makes, and its help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        groups = self.flag_groups()
        of_all = flags_in(Command)
        if not self.concerns_a_farm:
            del of_all["Command.farm"]
        self.aliases, self.flags = {}, {}
        for target, trait in chain.from_iterable(map(dict.items, [*groups, of_all])):
            if "metavar" in trait.metadata:
                self.aliases.setdefault(_flag_names(trait), target)
        for target, trait in chain.from_iterable(map(dict.items, reversed(groups))):
            if "metavar" not in trait.metadata:
                owner, name = target.split(".")
                sets = {owner: {name: not trait.default_value}}
                self.flags.setdefault(_flag_names(trait), (sets, trait.metadata["text"]))

    def flag_groups(self) -> list[dict[str, Any]]:
        """Return the flags of each class of this command, the most general first."""
        return [
            flags_in(cls) for cls in reversed(type(self).__mro__) if issubclass(cls, Command) and cls is not Command
        ]

    def read(self, argv: list[str]) -> None:
        """Parse a command line; its settings override config files, and these override defaults.

        Raises UsageError for a wrong command line.
        """
        self.argv = list(argv)
        if any(word in ("-h", "--help", "--help-all") for word in argv):
            print("\n".join(self.emit_help(classes="--help-all" in argv)))
            raise HelpShown
        given, self.extra_args = read_words(argv, self._known_flags(), self)
        self._given = frozenset(given[type(self).__name__]) if type(self).__name__ in given else frozenset()
        self.update_config(given)  # the command line may name config files
        self._read_config_files()
        self.update_config(given)
        if not all(word.strip() for word in self.extra_args):
            raise UsageError("one of the words is empty: it names nothing")
        if self.extra_args and not self.arguments:
            first = self.extra_args[0]
            if first in COMMANDS:  # `ipytaskfarm --farm x status`
                raise UsageError(f"the command comes first: `ipytaskfarm {first}`, and then the flags")
            named = f"; --farm {first} names a farm" if "farm" in self._known_flags() else ""
            raise UsageError(f"what is {' '.join(self.extra_args)!r} for? This command takes only flags{named}")

    def _known_flags(self) -> dict[str, Flag | Switch]:
        """Return all flags by name: those with a value, those without, and each setting as ``Class.trait``."""
        traits = self._settings()
        known: dict[str, Flag | Switch] = {
            f"{owner}.{name}": Flag(owner, name, trait) for owner, own in traits.items() for name, trait in own.items()
        }
        for keys, target in self.aliases.items():
            owner, name = target.split(".")
            known |= dict.fromkeys(keys, Flag(owner, name, traits[owner][name]))
        for keys, (sets, _) in self.flags.items():
            known |= dict.fromkeys(keys, Switch(sets))
        return known

    def _settings(self) -> dict[str, dict[str, Any]]:
        return {cls.__name__: cls.class_traits(config=True) for cls in self._classes_inc_parents()}

    def _read_config_files(self) -> None:
        for file in self.config_files:
            suffix = os.path.splitext(file)[1]
            if suffix not in (".py", ".json") or not os.path.isfile(file):
                raise UsageError(f"there is no config file {file}: a file was expected whose name ends in .py or .json")
            kind = self.python_config_loader_class if suffix == ".py" else self.json_config_loader_class
            folder, name = os.path.split(os.path.abspath(file))
            self._load(((loader.load_config(), file) for loader in [kind(name, path=folder)]), [file])
        if self.config_files:
            return
        from jupyter_core.paths import jupyter_config_path

        try:
            folders = jupyter_config_path()
        except RuntimeError:
            return  # a user without a home has no config files
        name = "ipytaskfarm_config"
        files = [os.path.join(folder, name + suffix) for folder in folders for suffix in (".py", ".json")]
        self._load(self._load_config_files(name, folders, raise_config_file_errors=True), files)

    def _load(self, read: Iterable[tuple[Config, str]], files: Iterable[str]) -> None:
        """Take settings with the names of their files, which are some of these, and are read here."""
        try:
            loaded = list(read)
        except Exception as error:  # a config file is Python code and may raise anything
            which = " or ".join(filter(os.path.exists, files))
            raise UsageError(f"the config file {which} raised {type(error).__name__}: {error}") from error
        for config, file in loaded:
            self._check_config(config, f"the config file {file}")
            self.update_config(config)

    def _check_config(self, config: Config, source: str) -> None:
        """Refuse settings of this command in a config file that do not exist, or have values that do not fit."""
        for owner, traits in self._settings().items():
            for name, value in config[owner].items() if owner in config else ():
                if name not in traits:
                    raise UsageError(f"{source}: there is no setting c.{owner}.{name}{did_you_mean(name, traits)}")
                if not isinstance(value, LazyConfigValue):
                    checked_value(f"{source}: c.{owner}.{name}", Flag(owner, name, traits[name]), value, self)

    def carry_out(self) -> int:
        """Run the command, and return the exit code."""
        raise NotImplementedError

    def check_action(self, action: str) -> None:
        """Refuse flags of the command line that belong to other actions: nothing would come of them."""
        for setting in sorted(self._given):
            actions = self.of_action.get(setting, (action,))
            if action not in actions:
                *belongs, this = (f"`{self.name} {each}".rstrip() + "`" for each in (*actions, action))
                flag_name = _flag_names(self.traits()[setting])[-1]
                raise UsageError(f"--{flag_name} belongs to {complete(belongs)}, not to {this}")

    def home(self) -> Home:
        """Return the files of the farm that ``--farm`` names."""
        try:
            return Home.of(self.farm)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def number_arguments(self, what: str) -> list[int]:
        """Return the words of the command line as task or engine ids; at least one."""
        try:
            ids = parse_ids(self.extra_args, what)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not ids:
            raise UsageError(f"which {what}? Give one or more ids, like 3, 3-9 or 3,5,7")
        return ids

    def single_task(self) -> int:
        """Return the only word of the command line as the id of a task."""
        ids = self.number_arguments("task")
        if len(ids) != 1:
            raise UsageError("one task at a time")
        return ids[0]

    def emit_help(self, classes: bool = False) -> Iterator[str]:  # type: ignore[override]
        """Yield the help of the command on one screen: usage, description, flags, examples."""
        words = f" {self.arguments}" if self.arguments else ""
        usage = f"usage: ipytaskfarm {self.name}{words} [flags]"
        yield fill(usage, width(), subsequent_indent=" " * 19, break_on_hyphens=False)
        yield ""
        yield fill(" ".join(str(self.description).split()), width(), break_on_hyphens=False)
        yield ""
        yield "Flags"
        yield from self._flag_lines()
        if self.examples:
            yield ""
            yield "Examples"
            yield from (f"    {line.strip()}" for line in str(self.examples).strip().splitlines())
        yield ""
        yield fill(_SETTINGS, width(), break_on_hyphens=False)
        if classes:
            yield from self.emit_options_help()

    def _flag_lines(self) -> Iterator[str]:
        traits = self._settings()
        for keys, target in self.aliases.items():
            owner, name = target.split(".")
            trait = traits[owner][name]
            metavar = trait.metadata.get("metavar", name.upper())
            yield from _flag_help(keys, f" {metavar}", trait.help)
        for keys, (_, text) in self.flags.items():
            yield from _flag_help(keys, "", text)
        yield from _flag_help(("h", "help"), "", "show this text")


class JsonCommand(Command):
    """A command that can print its answer for programs."""

    json = switch("print JSON, for programs")


def _flag_help(keys: tuple[str, ...], metavar: str, text: str) -> Iterator[str]:
    shown = ", ".join(("-" if len(name) == 1 else "--") + name for name in sorted(keys, key=len)) + metavar
    first, *more = wrap(text, width() - 33, break_on_hyphens=False, break_long_words=False)
    yield f"    {shown:<28} {first}" if len(shown) <= 28 else f"    {shown}\n{'':33}{first}"
    yield from (f"{'':33}{line}" for line in more)


def _overview() -> Iterator[str]:
    """Yield the help of the command itself."""
    yield "A durable task farm of IPython kernels."
    yield ""
    yield "    ipytaskfarm -n 4             start a farm of four engines here; Ctrl-C stops it"
    yield "    ipytaskfarm COMMAND --help   what a command does, and its flags"
    yield ""
    yield "Commands"
    for name, (_, text) in COMMANDS.items():
        first, *more = wrap(text, width() - 17)
        yield f"    {name:<12} {first}"
        yield from (f"{'':17}{line}" for line in more)
    yield ""
    yield fill(
        "Every command about a farm takes --farm NAME (default: the farm called default). Exit codes: 0 fine,"
        " 1 failed, 2 wrong command line, 3 the store cannot be used, 4 refused or no farm.",
        width(),
    )


def run(arguments: list[str]) -> int:
    """Carry out a command line, and return its exit code."""
    print_any_text(sys.stdout, sys.stderr)
    if arguments and arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    name = arguments[0] if arguments else "help"
    try:
        if not arguments or name in ("-h", "--help", "--help-all"):
            print("\n".join(_overview()), flush=True)
            return OK
        if name in ("-V", "--version"):
            print(__version__, flush=True)
            return OK
        command = _command(name)
        command.read(arguments[1:])
        return command.carry_out()
    except HelpShown:
        return OK
    except UsageError as error:
        _complain(name, f"{error}\nTry: ipytaskfarm {name if name in COMMANDS else ''} --help".replace("  ", " "))
        return USAGE
    except BrokenPipeError:
        # `ipytaskfarm tasks | head`: nobody reads on, and the interpreter would report an error at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except (errors.TaskFarmError, OSError, IndexError, KeyError, TimeoutError, ValueError) as error:
        _complain(name, _text_of(error) or type(error).__name__)
        return exit_code(error)


def no_such_farm(name: str) -> errors.FarmNotRunning:
    """Return the error for a farm that has no files here."""
    return errors.FarmNotRunning(f"there is no farm {name!r}: `ipytaskfarm list` lists all farms")


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error means."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, errors.StoreError):
        return STORE
    refusals = (
        errors.ConnectionError,
        errors.FarmExists,
        errors.QueuePolicyError,
        errors.SecurityError,
        errors.VersionMismatch,
    )
    return REFUSED if isinstance(error, refusals) else FAILED


def _text_of(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:  # its str() is a repr
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror:  # its str() begins with "[Errno 2]"
        return f"{error.filename}: {error.strerror}" if isinstance(error.filename, str) else error.strerror
    return str(error)


_MEANT = {
    **dict.fromkeys(("clear", "delete", "rm"), "remove"), **dict.fromkeys(("cancel", "kill"), "abort"),
    **dict.fromkeys(("scale", "workers", "engine", "ipengine"), "engines"), "local": "start", "ipcluster": "start",
    **{each: f"agents add {each}" for each in ("ssh", "pbs", "lsf", "slurm", "dask")}, "ipcontroller": "start",
    **dict.fromkeys(("view", "dashboard", "live"), "web"),
    **dict.fromkeys(("errors", "traceback"), "failures"), **dict.fromkeys(("info", "ps", "snapshot"), "status"),
    "why": "explain", "nodes": "agents", "output": "result", "ls": "list",
}  # fmt: skip
"""A word that is no command -> the command that does it."""


def _command(name: str) -> Command:
    if name not in COMMANDS:
        meant = _MEANT.get(name)
        near = f", did you mean {meant}?" if meant else did_you_mean(name, COMMANDS, "")
        raise UsageError(f"there is no command {name!r}{near}")
    module, _, attribute = COMMANDS[name][0].rpartition(".")
    command = getattr(import_module(module), attribute)()
    assert isinstance(command, Command)
    return command


def _complain(name: str, text: str) -> None:
    shown = "\n".join(map(safe, text.split("\n")))  # it may contain names of tasks and jobs
    print(f"ipytaskfarm {name}: {shown}", file=sys.stderr)


def unknown_action(word: str, actions: Iterable[str]) -> UsageError:
    """Return the error for a word that is no action of a command."""
    known = list(actions)
    return UsageError(f"{word!r} is not one of {complete(known)}{did_you_mean(word, known)}")


def complete(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: ``a, b and c``."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
