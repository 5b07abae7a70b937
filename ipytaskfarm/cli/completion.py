"""``ipytaskfarm completion``: print scripts with which shells complete commands, flags and names of farms.

The scripts contain all commands and flags, so the Tab key starts a process only for names of farms.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

from traitlets import Enum

from ipytaskfarm.cli.application import OK, Command, UsageError
from ipytaskfarm.cli.catalog import COMMANDS
from ipytaskfarm.cli.command_line import Flag
from ipytaskfarm.core.text import did_you_mean
from ipytaskfarm.deployment.home import Home

SHELLS = ("bash", "zsh", "fish")
FARMS = "farms"
"""In place of a shell: print the names of this user's farms, one per line, for the scripts."""
_FILES = frozenset({"FILE", "DIR", "PATH"})


class FlagEntry(NamedTuple):
    """One flag of a command, as a shell completes it."""

    names: tuple[str, ...]
    """The names of the flag with their dashes."""
    help: str
    takes: str
    """"": no value; "farms" or "files"; the choices as words; "-": a value that cannot be completed."""


class CommandEntry(NamedTuple):
    """One command, as a shell completes it."""

    name: str
    help: str
    words: tuple[str, ...]
    """The words that may follow it: list, add, remove …"""
    flags: tuple[FlagEntry, ...]


class Completion(Command):
    """``ipytaskfarm completion``"""

    name = "completion"
    arguments = "bash | zsh | fish"
    description = """
Prints a script by which the shell completes commands, flags, choices, files and the names of farms. For bash, add the
line of the first example to ~/.bashrc; the other examples write the script where zsh and fish find it.
"""
    examples = """
        eval "$(ipytaskfarm completion bash)"
        ipytaskfarm completion zsh > ~/.zfunc/_ipytaskfarm      # a folder of fpath
        ipytaskfarm completion fish > ~/.config/fish/completions/ipytaskfarm.fish
    """
    concerns_a_farm = False

    def carry_out(self) -> int:
        if len(self.extra_args) != 1:
            raise UsageError(f"which shell? One of {', '.join(SHELLS)}")
        (shell,) = self.extra_args
        if shell == FARMS:
            for home in Home.all():
                print(home.name)
            return OK
        scripts = {"bash": bash, "zsh": zsh, "fish": fish}
        if shell not in scripts:
            raise UsageError(
                f"there is no script for {shell!r}, only for {', '.join(SHELLS)}{did_you_mean(shell, SHELLS)}"
            )
        print("\n".join(scripts[shell](list(entries()))))
        return OK


def entries() -> Iterator[CommandEntry]:
    for name, (place, help_text) in COMMANDS.items():
        module, _, attribute = place.rpartition(".")
        command: Command = getattr(import_module(module), attribute)()
        yield CommandEntry(name, help_text, _words(command), tuple(_flags(command)))


def _words(command: Command) -> tuple[str, ...]:
    """Return the plain words of a usage line: list and add for ``list | add [N]``."""
    parts = [part.split()[0] for part in command.arguments.split("|") if part.split()]
    return tuple(part for part in parts if part.isalpha() and part.islower())


def _flags(command: Command) -> Iterator[FlagEntry]:
    traits = command._settings()
    for keys, target in command.aliases.items():
        owner, trait = target.split(".")
        flag = Flag(owner, trait, traits[owner][trait])
        yield FlagEntry(_dashed(keys), str(flag.trait.help), _takes(target, flag))
    for keys, (_, text) in command.flags.items():
        yield FlagEntry(_dashed(keys), text, "")
    yield FlagEntry(("-h", "--help"), "show help", "")


def _dashed(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(("-" if len(name) == 1 else "--") + name for name in sorted(names, key=len))


def _takes(target: str, flag: Flag) -> str:
    if target == "Command.farm":
        return FARMS
    if isinstance(flag.trait, Enum):
        return " ".join(str(each) for each in flag.trait.values or () if each is not None)
    return "files" if flag.metavar in _FILES else "-"


def bash(commands: list[CommandEntry]) -> Iterator[str]:
    """Yield the lines of the script for bash."""
    yield "_ipytaskfarm() {"
    yield "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= words= flags= value= i"
    yield "    COMPREPLY=()"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield "        [[ ${COMP_WORDS[i]} == -* ]] || { command=${COMP_WORDS[i]}; break; }"
    yield "    done"
    yield "    [[ -z $command && $word == -* ]] && command=start"
    yield "    case $command in"
    yield f'        "") words="{" ".join(entry.name for entry in commands)}" ;;'
    for entry in commands:
        flags = " ".join(name for flag in entry.flags for name in flag.names)
        yield f'        {entry.name}) words="{" ".join(entry.words)}" flags="{flags}"'
        yield "            case $before in"
        for flag in entry.flags:
            if flag.takes:
                yield f'                {"|".join(flag.names)}) value="{flag.takes}" ;;'
        yield "            esac ;;"
    yield "    esac"
    yield "    case $value in"
    yield '        "") [[ $word == -* ]] && words=$flags ;;'
    yield f"        {FARMS}) words=$(ipytaskfarm completion {FARMS} 2>/dev/null) ;;"
    yield '        files) COMPREPLY=($(compgen -f -- "$word")); return ;;'
    yield "        -) return ;;"
    yield "        *) words=$value ;;"
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield "complete -o default -F _ipytaskfarm ipytaskfarm"


def zsh(commands: list[CommandEntry]) -> Iterator[str]:
    """Yield the lines of the script for zsh."""
    yield "#compdef ipytaskfarm"
    yield '_ipytaskfarm_farms() { local -a farms; farms=(${(f)"$(ipytaskfarm completion farms 2>/dev/null)"});'
    yield "    _describe farm farms }"
    yield "_ipytaskfarm() {"
    yield "    local -a commands; local line state"
    yield "    commands=("
    for entry in commands:
        yield f"        {_zsh_quoted(f'{entry.name}:{entry.help}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then _describe command commands; return; fi"
    yield "    local command=$words[2]; shift words; (( CURRENT-- ))"
    yield "    case $command in"
    for entry in commands:
        yield f"        {entry.name}) _arguments \\"
        for flag in entry.flags:
            action = {"": "", "-": ":value: ", FARMS: ":farm:_ipytaskfarm_farms", "files": ":file:_files"}.get(
                flag.takes, f":value:({flag.takes})"
            )
            for name in flag.names:
                text = flag.help.translate({ord("["): "(", ord("]"): ")", ord(":"): ","})
                yield f"            {_zsh_quoted(f'*{name}[{text}]{action}')} \\"
        rest = f"*: :({' '.join(entry.words)})" if entry.words else "*: :_default"
        yield f"            {_zsh_quoted(rest)} ;;"
    yield "    esac"
    yield "}"
    yield 'if [[ $funcstack[1] == _ipytaskfarm ]]; then _ipytaskfarm "$@"; else compdef _ipytaskfarm ipytaskfarm; fi'


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def fish(commands: list[CommandEntry]) -> Iterator[str]:
    """Yield the lines of the script for fish."""
    yield "complete -c ipytaskfarm -n __fish_use_subcommand -f"
    for entry in commands:
        yield f"complete -c ipytaskfarm -n __fish_use_subcommand -a {entry.name} -d {_fish_quoted(entry.help)}"
        seen = f"-n '__fish_seen_subcommand_from {entry.name}'"
        if entry.words:
            yield f"complete -c ipytaskfarm {seen} -f -a '{' '.join(entry.words)}'"
        for flag in entry.flags:
            names = " ".join(f"-s {name[1:]}" if len(name) == 2 else f"-l {name[2:]}" for name in flag.names)
            takes = {"": "", "-": " -x", "files": " -rF", FARMS: f" -xa '(ipytaskfarm completion {FARMS})'"}.get(
                flag.takes, f" -xa '{flag.takes}'"
            )
            yield f"complete -c ipytaskfarm {seen} {names}{takes} -d {_fish_quoted(flag.help)}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
