"""What tasks and commands both work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.messages import FromEngine
from ..storage.blobs import Blobs
from ..system.flight_recorder import Recorder
from .baseline import Baseline
from .capture import Capture
from .cells import Cells
from .environments import Environments
from .loops import Loops
from .namespace import Namespace
from .profiling import Profiling
from .properties import Properties


@dataclass(frozen=True)
class Parts:
    """The parts of one engine."""

    engine: str
    """Our incarnation."""
    engine_id: int
    recorder: Recorder
    namespace: Namespace
    properties: Properties
    facts: dict[str, Any]
    cells: Cells
    capture: Capture
    baseline: Baseline
    blobs: Blobs | None
    """Where large values go; None: they travel inside, as nobody else sees this node's folder."""
    send: Callable[[FromEngine], None]
    """To the agent, from any thread."""
    environments: Environments
    profiling: Profiling
    loops: Loops
