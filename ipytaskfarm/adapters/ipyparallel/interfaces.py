"""What results, views and decorators need of one another; the classes are in the modules of these names."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from ipytaskfarm.client import MultiEngineClient, TaskClient
from ipytaskfarm.client.session import Session

Later: TypeAlias = concurrent.futures.Future[None] | None
"""What a call returns that is over when it returns (None), or goes on in a thread (its future)."""


class AbortsCalls(Protocol):
    """The method of a client that results call."""

    def abort(self, jobs: Any = None, targets: Any = None, block: bool | None = None) -> Later:
        """Abort calls."""


class SendsCalls(AbortsCalls, Protocol):
    """The attributes and methods of a client that views use; `client.Client` documents them."""

    block: bool
    history: list[str]
    results: dict[str, Any]
    tasks: TaskClient
    multiengine: MultiEngineClient
    session: Session

    @property
    def ids(self) -> list[int]:
        """Return the ids of the engines."""

    @property
    def outstanding(self) -> set[str]:
        """Return the message ids of calls that have not ended."""

    @property
    def _engines(self) -> dict[int, str]: ...

    def __len__(self) -> int: ...

    def _build_targets(self, targets: Any) -> tuple[list[str], list[int]]: ...

    def uuid_of(self, engine: int) -> str:
        """Return the name of an engine's incarnation."""

    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool:
        """Wait for calls."""

    def get_result(self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = True) -> Any:
        """Return the result of earlier calls."""

    def queue_status(self, targets: Any = "all", verbose: bool = False) -> dict[Any, Any]:
        """Return what waits on engines."""

    def purge_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """Forget results."""

    def clear(self, targets: Any = None, block: bool | None = None) -> Any:
        """Empty the namespaces of engines."""

    def send_signal(self, sig: int | str, targets: Any = None, block: bool | None = None) -> Later:
        """Send a signal to engines."""

    def shutdown(
        self, targets: Any = "all", restart: bool = False, hub: bool = False, block: bool | None = None
    ) -> Later:
        """End engines."""


class PartsCall(NamedTuple):
    """A call of a function with parts of sequences.

    Its options are those of `remote_functions.PartsFunction`.
    """

    function: Any
    sequences: Sequence[Any]
    dist: str
    mapping: bool
    """Whether the function is called with the items of the parts."""
    block: bool | None
    return_exceptions: bool
    label: Any
    chunksize: int | None
    ordered: bool


class CallsFunctions(Protocol):
    """The attributes and methods of a view that decorators and executors use; `views.View` documents them."""

    block: bool

    @property
    def imap(self) -> Any:
        """Return the method for lazy maps."""

    def __len__(self) -> int: ...

    def temp_flags(self, **flags: Any) -> contextlib.AbstractContextManager[None]:
        """Set attributes for the calls of a block."""

    def apply(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function on the engines."""

    def apply_async(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function on the engines; return an `AsyncResult` at once."""

    def call_parts(self, call: PartsCall) -> Any:
        """Call a function with parts of sequences."""

    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool:
        """Wait for calls."""

    def wait_for_maps(self) -> None:
        """Submit the rest of unfinished maps."""

    def abort_waiting(self) -> None:
        """Abort the calls that have not begun."""


class ExecutesCode(Protocol):
    """The attributes and methods of a direct view that magics use; `views.DirectView` documents them."""

    client: SendsCalls
    block: bool
    targets: Any

    def execute(
        self, code: str, silent: bool = True, targets: Any = None, block: bool | None = None, label: Any = None
    ) -> Any:
        """Run code on the engines."""


class ChoosesEngines(Protocol):
    """The attributes of a view that joblib's backend uses."""

    client: SendsCalls
    targets: Any

    def __len__(self) -> int: ...
