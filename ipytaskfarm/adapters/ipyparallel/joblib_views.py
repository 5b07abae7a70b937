"""joblib's backend over a view: ``view.register_joblib_backend()``, then ``Parallel(backend="ipyparallel")``.

It is the farm's own backend with the client and the rules of the view; see `adapters.joblib_backend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import joblib

from ipytaskfarm.adapters.joblib_backend import FarmBackend

if TYPE_CHECKING:
    from ipytaskfarm.adapters.ipyparallel.balanced_view import LoadBalancedView


class ViewBackend(FarmBackend):
    """Runs the batches of `Parallel` calls as tasks on the engines of a view."""

    def __init__(self, view: LoadBalancedView | None = None, nesting_level: int | None = None, **rules: Any) -> None:
        """
        Args:
            view: a load-balanced view; None: one of a new `Client` of the farm "default".
            nesting_level: set by joblib.
            rules: rules of a `Task` for each batch.
        """
        if view is None:
            from ipytaskfarm.adapters.ipyparallel.client import Client

            view = Client().load_balanced_view()
        self._view = view
        own: dict[str, Any] = {} if view.targets is None else {"targets": view.targets}
        super().__init__(view.client.tasks, nesting_level, **own, **rules)


def register(name: str = "ipyparallel", make_default: bool = False, view: LoadBalancedView | None = None) -> None:
    """Make the backend known to joblib in this process.

    Args:
        name: the backend's name.
        make_default: whether `Parallel` calls use it without being told.
        view: the view; None: one of the farm "default", at the first `Parallel` call.
    """

    def make(**options: Any) -> ViewBackend:
        return ViewBackend(view, **options)

    joblib.register_parallel_backend(name, make, make_default=make_default)
