"""The parts of an engine that tasks and commands both use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.messages import FromEngine
from ..storage.blobs import BlobStore
from ..system.flight_recorder import Recorder
from .baseline import Baseline
from .capture import Capture
from .environments import Environments
from .kernel import Cells
from .namespace import Namespace
from .profiling import Profiling
from .properties import Properties
from .surroundings import Loops


@dataclass(frozen=True)
class Parts:
    """The parts of one engine."""

    engine: str
    """The engine's incarnation."""
    engine_id: int
    recorder: Recorder
    namespace: Namespace
    properties: Properties
    facts: dict[str, Any]
    cells: Cells
    capture: Capture
    baseline: Baseline
    blobs: BlobStore | None
    """Where large values are kept; None: they travel inside messages."""
    send: Callable[[FromEngine], None]
    """Sends a message to the agent. Any thread may call it."""
    environments: Environments
    profiling: Profiling
    loops: Loops
    farm: str
    """The farm's incarnation; "": unknown."""
