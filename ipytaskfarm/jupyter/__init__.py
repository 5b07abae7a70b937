"""What users type and see in IPython and Jupyter: magics, their errors and their completion.

``%load_ext ipytaskfarm`` calls `load`.  It registers ``%taskfarm``, ``%%task``, ``%task``, ``%tasks`` and
``%%taskmap``.  ipyparallel has a ``%px`` family too, so ours is registered only by ``mec.activate()``.
"""

from __future__ import annotations

from typing import Any

MAGICS = {"line": ("taskfarm", "task", "tasks"), "cell": ("task", "taskmap")}


def load(shell: Any) -> None:
    """Register the magics with an IPython shell."""
    from ..display.ipython import hide_farms_frames
    from .completion import register_completion
    from .farm_magics import FarmMagics
    from .px_magics import offer_activation
    from .task_magics import TaskMagics

    shell.register_magics(FarmMagics, TaskMagics)
    register_completion(shell)
    offer_activation()
    hide_farms_frames(shell)


def unload(shell: Any) -> None:
    """Remove the magics from an IPython shell."""
    from .completion import remove_completion
    from .connection import disconnect

    for kind, names in MAGICS.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
    remove_completion(shell)
    disconnect(shell)
