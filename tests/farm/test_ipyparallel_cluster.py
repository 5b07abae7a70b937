"""`ipytaskfarm.ipyparallel`: the import, and `Cluster`, a farm that a program of ipyparallel starts."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

import ipytaskfarm.ipyparallel as ipp
from ipytaskfarm import errors
from ipytaskfarm.adapters.ipyparallel.remote_functions import PartsFunction
from tests.support.farms import DEADLINE_S, python

pytestmark = pytest.mark.farm


def end_engine() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def square(x: int) -> int:
    return x * x


@pytest.mark.slow
def test_a_cluster_is_a_farm(session_dirs: object) -> None:
    cluster = ipp.Cluster(n=1, log_level=40)
    with pytest.raises(errors.FarmNotRunning, match="start_cluster_sync"):
        cluster.connect_client_sync()
    with cluster as rc:
        assert rc[:].apply_sync(square, 3) == [9]
        cluster.start_engines_sync(1)
        rc.wait_for_engines(2, timeout=DEADLINE_S)
    assert cluster.farm is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"delay": 1.0}, "engines start together"),
        ({"controller_ip": "*"}, "host="),
        ({"controller_args": ["--debug"]}, "settings of a Farm"),
        ({"shutdown_atexit": False}, "ipytaskfarm start"),
    ],
)
def test_arguments_about_processes_that_a_farm_has_not_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ipp.Cluster(n=1, **arguments)


def test_a_cluster_logs_its_start_if_asked(
    session_dirs: object, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with ipp.Cluster(n=1, profile="named", log_level="INFO") as rc:
        assert rc.tasks.farm == "named"
        rc.wait_for_engines(1, interactive=True)
    assert [record.getMessage() for record in caplog.records if record.name == "ipytaskfarm.cluster"] == [
        "Starting 1 engines", "Stopping the farm"
    ]  # fmt: skip
    assert "1 engines are ready" in capsys.readouterr().err


def test_nothing_is_imported_unasked() -> None:
    code = (
        "import sys, ipytaskfarm.client, ipytaskfarm.ipyparallel\nprint([n for n in sys.modules if 'ipyparallel' in n])"
    )
    assert python(code) == "['ipytaskfarm.ipyparallel']\n"
    code = (
        "import sys, ipytaskfarm.ipyparallel as ipp\nipp.Reference, ipp.require\n"
        "print('ipytaskfarm.client' in sys.modules)"
    )
    assert python(code) == "False\n", "what engines import does not bring the client"


def test_a_chunksize_without_items_is_refused() -> None:
    """ipyparallel returns an empty list for it."""
    with pytest.raises(ValueError, match="chunksize must be 0 or more, not -1"):
        PartsFunction(None, abs, chunksize=-1)  # type: ignore[arg-type]


def test_a_view_waits_for_an_engine_that_is_being_replaced(session_dirs: object) -> None:
    """Its calls raised IndexError at that moment."""
    with ipp.Cluster(n=2, log_level=40) as rc:
        view = rc[:]
        view.scatter("part", range(12), block=True)
        for _ in range(3):
            with pytest.raises(ipp.EngineError):
                rc[1].apply_sync(end_engine)
            assert rc.ids in ([0], [0, 1])
            assert view.gather("part", block=True) == [*range(12)], "all parts are there"
        with pytest.raises(IndexError, match="No such engine: 7"):
            rc[[0, 7]].pull("part", block=True)
