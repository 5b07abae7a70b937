"""Public names: nothing that README, docs or notebooks name is missing, and nothing that they once named has gone.

``tests/data/public_names.txt`` has the names that the pages mentioned before modules and classes were renamed.  A name
of the list may only be removed with a line in CHANGELOG.md that says what to use instead.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import ipytaskfarm
from tests.support.public_names import CLASSES, PROJECT, exists, names_in, pages, text_of

KEPT = (PROJECT / "tests" / "data" / "public_names.txt").read_text(encoding="utf-8").splitlines()
PAGES = pages(PROJECT)
FOR_OTHER_MODULES = {
    "TaskClient": "defaults",
    "MultiEngineClient": "execute_cell ids_of",
    "Executor": (
        "after_fork end_at_exit ended_by_ctrl_c is_running settle settle_chunk settle_waiting submit_chunk "
        "submit_gathered submit_items submit_with"
    ),
    "Job": "begin_map of_row spec_of_map text_of_going_on",
    "TaskResult": "without",
    "TaskFuture": "on_dropped_wait settle waits_begun",
    "CurrentTask": "answered end granted packed spawn",
    "PendingResult": "invalidate",
}
"""Methods that other modules of the package call, and users do not: no page names them."""
_MORE = {"Executor": ipytaskfarm.Executor, "Pool": ipytaskfarm.Pool, "TaskFuture": ipytaskfarm.TaskFuture}
OF_USERS = {name: kind for name, kind in (CLASSES | _MORE).items() if inspect.isclass(kind)}


def own_names(kind: Any) -> set[str]:
    """Return the public names that classes of the package give to a class."""
    own = [vars(base) for base in kind.__mro__ if base.__module__.startswith("ipytaskfarm")]
    return {name for names in own for name in names if not name.startswith("_")}


def is_named(name: str, text: str) -> bool:
    """Return whether a page has a name as an attribute, as a call, or alone between backquotes."""
    return re.search(rf"\.{name}\b|\b{name}\(|`{name}`", text) is not None


def test_nothing_that_pages_once_named_has_gone() -> None:
    assert len(KEPT) > 300
    assert sorted(set(KEPT)) == KEPT
    assert not [name for name in KEPT if not exists(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    missing = [name for name in sorted(names_in(text_of(page))) if not exists(name)]
    assert not missing, "write it, or mark its line 'not yet'"


def test_every_public_name_is_on_a_page() -> None:
    text = "\n".join(map(text_of, [*PAGES, *(PROJECT / "docs" / "from").glob("*.md")]))
    assert not [name for name in ipytaskfarm.__all__ if not re.search(rf"\b{name}\b", text) and name != "__version__"]
    for owner, kind in OF_USERS.items():
        expected = own_names(kind) - set(FOR_OTHER_MODULES.get(owner, "").split())
        assert len(expected) > 3
        missing = sorted(name for name in expected if not is_named(name, text))
        assert not missing, f"no page tells of these names of {owner}: add them, or give them to FOR_OTHER_MODULES"


def test_names_for_other_modules_exist() -> None:
    assert not {k: s for k, v in FOR_OTHER_MODULES.items() if (s := set(v.split()) - own_names(OF_USERS[k]))}


def test_each_kind_of_name_is_found_on_a_page() -> None:
    page = (
        "`tc.run`, `tc.sampling.start()` and mec.push\n`tc.fly` is not yet there, etc.path\n"
        "```python\nfrom ipytaskfarm.engine import current_task\nFarm(n=2, resources=dict(a=1), hold = True)\n```\n"
        "`ipytaskfarm.policies.FIFO`, `ipytaskfarm start -n 4 --daemonize`\n\n### drain\n\n| `--off` | |\n\n"
        "`%task mark-done ID`, `%%task --env E`\n"
    )
    assert names_in(page) == {
        "TaskClient.run", "TaskClient.sampling.start", "MultiEngineClient.push", "ipytaskfarm.engine.current_task",
        "Farm(n=)", "Farm(resources=)", "Farm(hold=)", "ipytaskfarm.policies.FIFO", "$ start", "$ start -n",
        "$ start --daemonize", "$ drain --off", "%task", "%task mark-done", "%%task", "%%task --env",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "TaskClient.fly", "TaskClient.sampling.fly", "errors.Fly", "Farm(fly=)", "Task(fly=)", "ipytaskfarm.fly",
        "ipytaskfarm.policies.Fly", "$ fly", "$ start --fly", "$ agent --fly", "%fly", "%task fly", "%%task --fly",
        "%px --fly",
    ],
)  # fmt: skip
def test_what_is_not_there_is_missed(name: str) -> None:
    assert not exists(name)
