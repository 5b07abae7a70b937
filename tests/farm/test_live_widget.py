"""The live view as an object of Python: with and without anywidget, of a farm, a client and a job."""

from __future__ import annotations

import sys

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.adapters.live_widget import script
from ipytaskfarm.system.live_pages import PAGES, page_path

WIDGET = "application/vnd.jupyter.widget-view+json"
EVIL = "<img src=x onerror=alert(1)>"


def test_without_anywidget_it_is_a_table_in_which_text_of_tasks_is_text(
    farm: Farm, tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    tc.run(Task(f"raise ValueError({EVIL!r})"), block=True)
    for view in (tc.view(), farm.view()):
        found = view._repr_mimebundle_()
        assert set(found) == {"text/plain", "text/html"}
        assert f"farm {farm.name!r}: " in found["text/plain"] == repr(view)
        assert "ValueError" in found["text/html"]
        assert EVIL not in found["text/html"]
        assert "&lt;img" in found["text/html"]


def test_with_anywidget_it_is_a_widget_that_has_the_picture(tc: TaskClient) -> None:
    job = tc.create_job("one")
    job.add_task(Task("a = 1", pull="a"))
    job.submit()
    job.results()
    view = job.view()
    found = view._repr_mimebundle_()
    assert {"text/plain", "text/html", WIDGET} <= set(found)
    widget = view._widget
    assert widget.job == job.id
    assert widget.picture["counts"]["succeeded"] >= 1
    assert len(widget.stamp) == 2
    assert view._repr_mimebundle_()[WIDGET] == found[WIDGET], "a second look makes no second widget"


def test_the_page_is_one_module_without_imports() -> None:
    text = script()
    assert text.count("export default") == 1
    assert "\nimport " not in text


def test_a_link_is_made_only_where_the_server_of_this_kernel_shows_the_farm(
    farm: Farm, tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page_path(farm.name) == ""
    assert "live view" not in tc._repr_html_()
    monkeypatch.setenv(PAGES, "12:/user/me%40home/taskfarm/")
    assert page_path(farm.name) == "", "of another server"
    monkeypatch.setenv("JPY_PARENT_PID", "12")
    assert page_path(farm.name) == f"/user/me%40home/taskfarm/?farm={farm.name}"
    assert page_path("nowhere") == ""
    assert page_path("../etc") == ""
    for shown in (tc._repr_html_(), farm._repr_html_()):
        assert f'<a href="/user/me%40home/taskfarm/?farm={farm.name}" target="_blank">' in shown
    job = tc.create_job("linked")
    job.add_task(Task("a = 1"))
    job.submit()
    job.results()
    assert f"farm={farm.name}&amp;job={job.id}" in job._repr_html_()
    monkeypatch.setenv(PAGES, "12:javascript:alert(1)")
    assert page_path(farm.name) == ""
