"""Sentences about versions that differ: of the page, of the farm, of its clients and engines.

The kernel of a notebook, Jupyter's server and the farm may live in three environments. Peers of another protocol are
refused by the connection; what is said here concerns those that understand each other.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipytaskfarm.core.messages.tables import ConnectionRow

CLIENT = "client"
"""The title of the key of clients."""
VERSION_MAX = 40


def differences(page: str, farm: str, clients: Iterable[ConnectionRow], engines: Iterable[str]) -> list[str]:
    """Return what differs, a sentence each.

    Args:
        page: the version of this package in the process that serves the page.
        farm: the same in the controller; "" if it is not known.
        clients: the connections of the farm.
        engines: the versions of Python of the nodes.
    """
    here = [row for row in clients if row.there and row.key == CLIENT]
    found = []
    if farm and page != farm:
        found.append(
            f"This page comes from ipytaskfarm {page}, and the farm runs {farm[:VERSION_MAX]}: they understand each "
            "other, but where something is missing here, install the same version for both."
        )
    other = [row for row in here if row.version not in ("", page, farm)]
    if other:
        versions = ", ".join(sorted({row.version for row in other})[:3])
        found.append(
            f"{_number(other)} ipytaskfarm {versions}, and the farm {farm[:VERSION_MAX]}: install the same version in "
            "the environment of the notebook or script."
        )
    engine_pythons = {_minor(version) for version in engines} - {""}
    odd = [row for row in here if _minor(row.python) and engine_pythons and _minor(row.python) not in engine_pythons]
    if odd:
        pythons = ", ".join(sorted({_minor(row.python) for row in odd})[:3])
        found.append(
            f"{_number(odd)} Python {pythons}, and the engines {', '.join(sorted(engine_pythons)[:3])}: functions of a "
            "notebook or script run only in the same minor version of Python."
        )
    return found


def _number(rows: list[ConnectionRow]) -> str:
    if len(rows) == 1:
        return f"The client {rows[0].name[:60]} uses"
    return f"{len(rows):,} clients use"


def _minor(version: str) -> str:
    """Return a Python's minor version, such as 3.12; "" if this is none."""
    parts = version.split(".")[:2]
    return ".".join(parts) if len(parts) == 2 and all(part.isdigit() for part in parts) else ""
