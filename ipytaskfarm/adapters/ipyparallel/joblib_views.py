"""joblib's backend over a view: ``view.register_joblib_backend()``, then ``Parallel(backend="ipyparallel")``.

It is the farm's own backend with the client and the rules of the view; see `adapters.joblib_backend`.
"""

from __future__ import annotations

from typing import Any

import joblib

from ipytaskfarm.adapters.ipyparallel.interfaces import ChoosesEngines
from ipytaskfarm.adapters.joblib_backend import FarmBackend


class ViewBackend(FarmBackend):
    """Runs the batches of `Parallel` calls as tasks on the engines of a view."""

    def __init__(self, view: ChoosesEngines | None = None, nesting_level: int | None = None, **rules: Any) -> None:
        """Create the backend.

        Args:
            view: a load-balanced view; None: all engines of the farm "default", or of a farm of this process if that
                does not run.
            nesting_level: set by joblib.
            rules: rules of a `Task` for each batch.
        """
        self._view = view
        own: dict[str, Any] = {} if view is None or view.targets is None else {"targets": view.targets}
        super().__init__(None if view is None else view.client.tasks, nesting_level, **own, **rules)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of batches that may run at once; of a view with targets, at most their number."""
        count = super().effective_n_jobs(n_jobs)
        return count if self._view is None or self._view.targets is None else min(count, len(self._view))


def register(name: str = "ipyparallel", make_default: bool = False, view: ChoosesEngines | None = None) -> None:
    """Make the backend known to joblib in this process.

    Args:
        name: the backend's name.
        make_default: whether `Parallel` calls use it without being told.
        view: the view; None: see `ViewBackend`.
    """

    def make(**options: Any) -> ViewBackend:
        return ViewBackend(view, **options)

    joblib.register_parallel_backend(name, make, make_default=make_default)
