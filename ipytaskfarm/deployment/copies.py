"""Folders of farms that were copied, moved or restored, as the next start finds them.

``farm.json`` names the farm and the path of its store, both as they were. A copy that was started with them would use
the store of the farm that it was copied from, and take that farm's processes for its own.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import NamedTuple

import msgspec

from ipytaskfarm.core import errors
from ipytaskfarm.storage.beside import identity, recorders_folder
from ipytaskfarm.storage.disk import refuse_odd_store
from ipytaskfarm.system.farm_paths import FarmRecord
from ipytaskfarm.system.odd_files import set_aside_unless_file, set_aside_unless_folder


class Found(NamedTuple):
    """What there is of a farm when it is started."""

    name: str
    """The farm's name now."""
    own_store: Path
    """The place in the farm's folder where a store of that file name would be."""
    has_own_store: bool
    has_recorded_store: bool
    """Whether there is a file at the recorded path of the store."""
    identity: str
    """See `storage.beside.identity`, of the store that the farm has now."""


class SettledRecord(NamedTuple):
    """What becomes of a farm's record."""

    record: FarmRecord
    remark: str = ""
    """What a person should know; "" if nothing has changed."""
    is_new: bool = False
    """Whether it is another farm than that of the processes and flight recorders that the folder speaks of."""


def settled(record: FarmRecord, found: Found) -> SettledRecord:
    """Decide what becomes of a farm's record.

    Raises:
        StoreError: the store is gone, or is in use by the farm that this one is a copy of.
    """
    inside = Path(record.store) != found.own_store and found.has_own_store
    if inside:
        record = msgspec.structs.replace(record, store=str(found.own_store))
    elif not found.has_recorded_store:
        if record.file:
            raise errors.StoreError(
                f"the store of farm {found.name!r} is gone: there is no {record.store}. Put a backup there, or begin "
                "again with `ipytaskfarm start --fresh`"
            )
        return SettledRecord(record)
    renamed, former_name = record.name != found.name, record.name
    record = msgspec.structs.replace(record, name=found.name)
    same_folder, same_store = same_parts(record.file, found.identity)
    if not record.file or (same_folder and same_store):
        remark = f"this is farm {former_name!r} under another name" if renamed or inside else ""
        return SettledRecord(record, remark)
    if not same_folder and not inside and renamed:
        raise errors.StoreError(
            f"the folder of farm {found.name!r} is a copy of that of farm {former_name!r}, and both would use one "
            f"store, {record.store}: start with an empty store by `ipytaskfarm start --fresh`, or copy the store too,"
            " into the farm's folder"
        )
    what = f"a copy of farm {former_name!r}" if not same_folder else "another store than before"
    return SettledRecord(
        msgspec.structs.replace(record, incarnation=uuid.uuid4().hex, former=record.incarnation, file=""),
        f"this is {what}: it has what waited and the results, and clients connect to it again",
        True,
    )


def same_parts(before: str, now: str) -> tuple[bool, bool]:
    """Return whether (the folder, the store) of two identities are the same."""
    (folder, _, store), (folder_now, _, store_now) = before.partition("/"), now.partition("/")
    return folder == folder_now, store == store_now


def find(record: FarmRecord, name: str, folder: Path) -> Found:
    """Return which of a farm's files exist.

    Raises:
        StoreError: the store is no plain file.
    """
    recorded = Path(record.store)
    own = folder / recorded.name
    store = own if own.exists() else recorded
    refuse_odd_store(store)
    return Found(name, own, own.exists(), recorded.exists(), identity(folder, store))


def forget_processes(record: FarmRecord, files: list[Path]) -> None:
    """Remove what the folder says about processes of the farm that it was copied from."""
    for file in files:
        set_aside_unless_file(file)
        file.unlink(missing_ok=True)
    recorders = recorders_folder(Path(record.store))
    set_aside_unless_folder(recorders)
    shutil.rmtree(recorders, ignore_errors=True)
