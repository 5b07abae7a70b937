"""The arguments and resources of executorlib: what they become on a farm, and what is said of the others."""

from __future__ import annotations

from typing import Any

RESOURCES = (
    "cores", "threads_per_core", "gpus_per_core", "cwd", "num_nodes", "exclusive", "run_time_max", "priority",
    "restart_limit",
)  # fmt: skip
"""The keys of a `resource_dict` that have a meaning on a farm."""
_WITHOUT_MEANING = frozenset(
    {
        "block_allocation", "hostname_localhost", "refresh_rate", "log_obj_size", "openmpi_oversubscribe",
        "disable_dependencies", "pmi_mode", "flux_executor_nesting",
    }
)  # fmt: skip
"""Arguments, and keys of a `resource_dict`, about executorlib's own processes: a farm has others, so any value is
right."""
_CACHE = (
    "a farm keeps results on disk itself; `cache=True` takes the result of an equal call, also of an earlier program"
)
_GRAPH = "calls run as soon as their arguments have values, and nothing is drawn or exported: leave it out"
_LOGS = "leave it out: what calls print appears here, and the errors of failed ones are in `executor.client.failures()`"
_REMEDIES = {
    "cache_directory": _CACHE,
    "cache_key": f"{_CACHE}; `unique=` refuses a second call of one key",
    "plot_dependency_graph": _GRAPH,
    "plot_dependency_graph_filename": _GRAPH,
    "export_workflow_filename": _GRAPH,
    "error_log_file": _LOGS,
    "flux_log_files": _LOGS,
    "flux_executor": "give a TaskClient as the first argument, of a farm with engines of a batch system",
    "pysqa_config_directory": "engines are started by the farm's agents: give a TaskClient of a farm with engines of "
    "Slurm, PBS or LSF as the first argument",
    "slurm_cmd_args": "calls run on engines that are started already: give it to the launcher of the engines",
    "wait": "`with` waits for all calls; for calls that go on give a TaskClient of a farm that goes on, and call "
    "`shutdown(wait=False)`",
}  # fmt: skip
"""What a farm does not have -> what to do instead."""


def rules_of_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return the rules of a `Task` among the arguments of an executor of executorlib.

    Raises TypeError for an argument that steers what a farm does not have, with the remedy.  Its value of executorlib
    that does nothing is accepted.
    """
    rules = {name: value for name, value in given.items() if name not in _WITHOUT_MEANING and name not in _REMEDIES}
    for name in given:
        if name in _REMEDIES and not _does_nothing(name, given[name]):
            raise TypeError(f"{name}={given[name]!r} has no meaning on a farm: {_REMEDIES[name]}")
    if "restart_limit" in rules:
        rules.setdefault("retries", rules.pop("restart_limit"))
    return rules


def _does_nothing(name: str, value: Any) -> bool:
    return bool(value) if name == "wait" else not value


def rules_of(resources: dict[str, Any]) -> dict[str, Any]:
    """Translate executorlib's resources into rules of a `Task`.

    Raises ValueError for a key that has no meaning here, and for several nodes.
    """
    for name in sorted(resources.keys() - _WITHOUT_MEANING - set(RESOURCES)):
        if name not in _REMEDIES:
            raise ValueError(f"resource_dict has {name!r}, which a farm does not have; it has {', '.join(RESOURCES)}")
        if not _does_nothing(name, resources[name]):
            raise ValueError(f"resource_dict has {name!r}, which a farm does not have: {_REMEDIES[name]}")
    if (resources.get("num_nodes") or 1) != 1:
        raise ValueError("num_nodes must be 1: a task of a farm is one process")
    given = {name: value for name, value in resources.items() if value is not None}
    rules: dict[str, Any] = {}
    cores = given.get("cores", 1)
    amounts = {"cores": cores * given.get("threads_per_core", 1), "gpu": cores * given.get("gpus_per_core", 0)}
    if given.keys() & {"cores", "threads_per_core", "gpus_per_core"}:
        rules["resources"] = {name: amount for name, amount in amounts.items() if amount}
    if given.get("exclusive"):
        rules["exclusive"] = True
    for name, rule in (("run_time_max", "time_limit"), ("priority", "priority"), ("restart_limit", "retries")):
        if name in given:
            rules[rule] = given[name]
    return rules


def check_cores(resources: dict[str, Any], cores_max: int | None) -> None:
    """Raise ValueError for more cores than an executor was given (None: it was given no number)."""
    cores = resources.get("cores")
    if cores is not None and cores_max is not None and cores > cores_max:
        raise ValueError(
            f"resource_dict has {cores} cores, which is larger than the executor's number of cores, {cores_max}: "
            "give fewer, or max_cores= more"
        )
