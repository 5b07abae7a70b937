"""A farm's record, ``farm.json``, that was lost or damaged while the farm's store is there.

The store knows which farm it belongs to, so nothing of the farm is lost with the record.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import StoreError
from ..system.farm_paths import FARM_FILE, FarmRecord, read_farm_record
from ..system.odd_files import set_aside_unless_file, spoiled_name
from .backup import incarnation_of
from .beside import STORE_NAME


def usable_record(folder: Path) -> tuple[FarmRecord | None, str]:
    """Return ``farm.json`` of a farm's folder, and what people should be told.

    Returns:
        None for the record if there is none: a new one must name the farm of the store in the folder, if that is there.
        A record that cannot be read is set aside then.

    Raises:
        StoreError: the record is damaged, and there is no store in the folder that could replace it.
    """
    path = folder / FARM_FILE
    remark = set_aside_unless_file(path)
    try:
        return read_farm_record(folder), remark
    except StoreError as error:
        if not incarnation_of(folder / STORE_NAME):
            raise
        aside = spoiled_name(path)
        os.rename(path, aside)
        why = str(error).partition(". ")[0]
        return None, f"{why}: it is {aside.name} now"
