"""Attacks of a hostile client with a valid key: ``python -m tests.support.attacks CONNECTION_FILE ATTACK``.

Each attack runs until its process is ended. It prints one line when it is under way.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

from ipytaskfarm.system.farm_paths import read_connection_file
from tests.support import flood, flood_large
from tests.support.flood import Flood

ATTACKS: dict[str, Callable[[Flood], None]] = {
    attack.__name__: attack
    for attack in (
        flood.tasks_in_bulk, flood.each_question_in_bulk, flood.huge_ids, flood.unfinished, flood.connections,
        flood.bare_connections, flood.half_frames, flood.many_sessions, flood.slow_reader, flood.many_tasks,
        flood.ids_without_end, flood.commands, flood.pages_of_everything, flood.aborts, flood.watches,
        flood.waits_for_messages, flood.sticky_commands, flood.uploads, flood.empty_jobs,
        flood_large.long_reasons, flood_large.long_names, flood_large.heavy_rules, flood_large.long_lists,
        flood_large.own_classes, flood_large.functions_alone, flood_large.unmet_at_once, flood_large.large_values,
    )
}  # fmt: skip


def main(file: str, attack: str) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ATTACKS[attack](Flood(read_connection_file(Path(file))))


if __name__ == "__main__":
    main(*sys.argv[1:])
