"""Each setting is declared once; everything that is made of the declaration agrees with it."""

from __future__ import annotations

import argparse
import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ipytaskfarm import Farm
from ipytaskfarm.cli.start import Controller, Start, config_key, flag_of
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.deployment.settings import agent_flags, controller_flags, farm_settings
from ipytaskfarm.settings.declarations import SETTINGS, LeadingArguments, add_flags, scheduler_settings
from ipytaskfarm.settings.setting import AGENT, CONTROLLER

COMMANDS = Path(__file__).parents[2] / "docs" / "commands.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->\n"

GIVEN: dict[str, Any] = {
    "n": 3,
    "queue_policy": "mine:Policy",
    "location": "here",
    "unmet_timeout": timedelta(seconds=2),
    "failure_penalty": 0.25,
    "lease": 8,
    "grace": 2,
    "memory_limit": "2 GiB",
    "coroutines": 20,
    "failure_values": "none",
    "max_engine_losses": 7,
    "node_failures": 8,
    "keep_results": 60,
    "keep_results_size": "1G",
    "record": "/tmp/x.events",
    "warm": 0,
    "resources": {"gpu": 2, "room": "4 GiB"},
    "placement": "random",
    "load_limit": 0.5,
    "free_memory": "1 MiB",
    "environment_patience": False,
    "resource_patience": 0.0,
    "max_tasks": 1000,
    "max_sessions": 100,
    "incoming_limit": "1G",
    "outgoing_limit": "2G",
}


def read_back(process: str, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser, process)
    return parser.parse_args(words)


def test_the_signature_of_farm_is_made_of_the_settings() -> None:
    parameters = inspect.signature(Farm).parameters
    assert list(parameters) == list(SETTINGS)
    assert {name: each.default for name, each in parameters.items()} == {
        name: each.default for name, each in SETTINGS.items()
    }


def test_the_leading_arguments_that_farm_writes_out_are_those_of_the_settings() -> None:
    """mypy reads these in the constructor, and all others from `FarmArguments`."""
    written = get_type_hints(Farm.__init__)
    declared = get_type_hints(LeadingArguments)
    assert {name: written[name] for name in declared} == declared
    leading = Farm.__init__.__code__.co_varnames[1 : Farm.__init__.__code__.co_argcount]
    assert leading == tuple(declared)
    assert Farm.__init__.__defaults__ == tuple(SETTINGS[name].default for name in declared)


def test_the_docstring_of_farm_lists_the_settings() -> None:
    assert Farm.__doc__ is not None
    assert "{settings}" not in Farm.__doc__
    lines = Farm.__doc__.splitlines()
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in SETTINGS)
    assert "Raises:" in lines  # as far to the left as the list, whatever Python does with a docstring's indentation


def test_each_setting_is_a_flag_and_a_key_of_the_configuration() -> None:
    sections = {"Start": Start, "Controller": Controller}
    start = Start()
    flags = {f"--{key}" for keys in (*start.aliases, *start.flags) for key in keys}
    for name, setting in SETTINGS.items():
        assert flag_of(name) in flags
        if name != "name":
            trait = sections[setting.section].class_traits(config=True)[config_key(name)]
            assert trait.help.startswith(setting.help)
            assert setting.several or trait.default_value == setting.default


def test_what_is_given_arrives_in_the_processes() -> None:
    settings = farm_settings(GIVEN, "x", lambda: 1)
    told = read_back(CONTROLLER, controller_flags(settings))
    made = scheduler_settings(told)
    assert made == SchedulerSettings(
        lease_s=8.0, failure_penalty_s=0.25, unmet_timeout_s=2.0, max_engine_losses=7, node_failures=8, grace_s=2.0,
        warm=0, environment_patience_s=None, resource_patience_s=0.0, load_limit=0.5, free_memory_limit=2**20,
        placement="random", coroutines=20, max_tasks=1000,
    )  # fmt: skip
    assert (told.queue_policy, told.location, told.record) == ("mine:Policy", "here", Path("/tmp/x.events"))
    assert (told.keep_results, told.keep_results_size) == (60.0, 2**30)
    assert (told.max_sessions, told.incoming_limit, told.outgoing_limit) == (100, 2**30, 2**31)
    agent = read_back(AGENT, agent_flags(settings))
    assert (agent.lease, agent.grace, agent.memory_limit) == (8.0, 2.0, 2**31)
    assert agent.failure_values == "none"
    assert agent.resources == [("gpu", 2.0), ("room", float(4 * 2**30))]


def test_what_is_not_given_is_the_schedulers_default() -> None:
    settings = farm_settings({}, "x", lambda: 5)
    assert settings.engines == 5
    assert controller_flags(settings) == agent_flags(settings) == []
    assert scheduler_settings(read_back(CONTROLLER, [])) == SchedulerSettings()


def test_arguments_and_flags_come_to_the_same() -> None:
    command = Start()
    command.read(
        [
            *("-n", "3", "--queue-policy", "mine:Policy", "--location", "here", "--unmet-timeout", "2"),
            *("--failure-penalty", "0.25", "--lease", "8", "--grace", "2", "--memory-limit", "2 GiB"),
            *("--coroutines", "20", "--max-engine-losses", "7", "--node-failures", "8", "--keep-results", "60"),
            *("--keep-results-size", "1G", "--record", "/tmp/x.events", "--warm", "0", "--resource", "gpu=2"),
            *("--resource", "room=4 GiB", "--placement", "random", "--load-limit", "0.5", "--free-memory", "1 MiB"),
            *("--failure-values", "none", "--max-tasks", "1000", "--max-sessions", "100"),
            *("--incoming-limit", "1G", "--outgoing-limit", "2G"),
            *("--environment-patience", "-1", "--resource-patience", "0"),
        ]
    )
    assert command.settings() == farm_settings(GIVEN, "default", lambda: 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"max_engine_losses": 0}, "max_engine_losses must be 1"),
        ({"failure_values": "some"}, "failure_values must be one of masked, all, none, not 'some'"),
        ({"coroutines": 0}, "coroutines must be 1 or more"),
        ({"coroutines": 2000}, "coroutines must be 1,024 or less"),
        ({"max_engine_loses": 1}, "did you mean 'max_engine_losses'"),
        ({"resources": {"a b": 1}}, "resources: 'a b' is no name"),
        ({"placement": "near"}, "placement must be one of"),
        ({"load_limit": 2}, "load_limit must be a share"),
        ({"environment_patience": -2}, "environment_patience must be 0"),
        ({"policy_path": "/nowhere"}, "policy_path: /nowhere is not a folder"),
        ({"min": 3, "max": 2}, "min must be no more than max: 3 and 2"),
        ({"max": 2}, "min and max go together: give both"),
        ({"idle": 30}, "idle goes with min and max: .* Give both, or leave idle out"),
        ({"idle": timedelta(seconds=30), "agents": "slurm:2"}, "idle goes with min and max"),
        ({"failure_values": "maskd"}, "not 'maskd', did you mean 'masked'"),
        ({"queue_policy": "FairShar"}, "did you mean 'FairShare'"),
        ({"resources": {"gpu": "many"}}, "resources: gpu must be a number of 0 or more, or a size .* not 'many'"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_that_the_user_wrote(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises((TypeError, ValueError), match=part):
        farm_settings(arguments, "x", lambda: 1)


def settings_table() -> str:
    """The table of ``docs/commands.md``."""
    lines = ["| flag | in a configuration file | what it sets |", "|---|---|---|"]
    for name, setting in SETTINGS.items():
        if name == "name":
            continue
        unit = f" {setting.unit}" if setting.unit else ""
        default = f" ({setting.default_text})" if setting.default_text else ""
        several = "; may be given several times" if setting.several else ""
        key = f"{setting.section}.{config_key(name)}"
        lines.append(f"| `{flag_of(name)}{unit}` | `{key}` | {setting.help}{several}{default} |")
    return "\n".join(lines) + "\n"


def test_the_documentation_lists_the_settings() -> None:
    listed = COMMANDS.read_text().partition(BEGIN)[2].partition(END)[0]
    assert listed == settings_table(), "put the table of `settings_table` into docs/commands.md"
