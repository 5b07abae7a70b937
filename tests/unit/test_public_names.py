"""Public names: nothing that README, docs or notebooks name is missing, and nothing that they once named has gone.

``tests/data/public_names.txt`` has the names that the pages mentioned before modules and classes were renamed.  A name
of the list may only be removed with a line in CHANGELOG.md that says what to use instead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.public_names import PROJECT, exists, names_in, pages, text_of

KEPT = (PROJECT / "tests" / "data" / "public_names.txt").read_text(encoding="utf-8").splitlines()
PAGES = pages(PROJECT)


def test_nothing_that_pages_once_named_has_gone() -> None:
    assert len(KEPT) > 300
    assert sorted(set(KEPT)) == KEPT
    assert not [name for name in KEPT if not exists(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    missing = [name for name in sorted(names_in(text_of(page))) if not exists(name)]
    assert not missing, "write it, or mark its line 'not yet'"


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
