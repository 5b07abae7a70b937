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

    def abort(self, jobs: Any = None, targets: Any = None, block: bool | None = None) -> Later: ...


class SendsCalls(AbortsCalls, Protocol):
    """The attributes and methods of a client that views use; `client.Client` documents them."""

    block: bool
    history: list[str]
    results: dict[str, Any]
    tasks: TaskClient
    multiengine: MultiEngineClient
    session: Session

    @property
    def ids(self) -> list[int]: ...
    @property
    def outstanding(self) -> set[str]: ...
    @property
    def _engines(self) -> dict[int, str]: ...
    def __len__(self) -> int: ...
    def _build_targets(self, targets: Any) -> tuple[list[str], list[int]]: ...
    def uuid_of(self, engine: int) -> str: ...
    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool: ...
    def get_result(self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = True) -> Any: ...
    def queue_status(self, targets: Any = "all", verbose: bool = False) -> dict[Any, Any]: ...
    def purge_results(self, jobs: Any = (), targets: Any = ()) -> None: ...
    def clear(self, targets: Any = None, block: bool | None = None) -> Any: ...
    def send_signal(self, sig: int | str, targets: Any = None, block: bool | None = None) -> Later: ...
    def shutdown(
        self, targets: Any = "all", restart: bool = False, hub: bool = False, block: bool | None = None
    ) -> Later: ...


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
    def imap(self) -> Any: ...
    def __len__(self) -> int: ...
    def temp_flags(self, **flags: Any) -> contextlib.AbstractContextManager[None]: ...
    def apply(self, function: Any, /, *args: Any, **kwargs: Any) -> Any: ...
    def apply_async(self, function: Any, /, *args: Any, **kwargs: Any) -> Any: ...
    def call_parts(self, call: PartsCall) -> Any: ...
    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool: ...
    def wait_for_maps(self) -> None: ...
    def abort_waiting(self) -> None: ...


class ExecutesCode(Protocol):
    """The attributes and methods of a direct view that magics use; `views.DirectView` documents them."""

    client: SendsCalls
    block: bool
    targets: Any

    def execute(
        self, code: str, silent: bool = True, targets: Any = None, block: bool | None = None, label: Any = None
    ) -> Any: ...


class ChoosesEngines(Protocol):
    """The attributes of a view that joblib's backend uses."""

    client: SendsCalls
    targets: Any

    def __len__(self) -> int: ...
