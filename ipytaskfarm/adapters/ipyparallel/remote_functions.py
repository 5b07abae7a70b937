"""`remote` and `parallel`: decorators that make functions run on the engines of a view."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ipytaskfarm.adapters.ipyparallel.interfaces import CallsFunctions, PartsCall
from ipytaskfarm.client.engine_maps import can_slice
from ipytaskfarm.core.signatures import signature_of


def name_of(function: Any) -> str:
    """Return a name for a function, as results show it."""
    return str(getattr(function, "__name__", None) or getattr(function, "name", None) or function)


class RemoteFunction:
    """A function that runs on the engines of a view: ``f(x)`` is ``view.apply(f, x)``."""

    _shown_as = "RemoteFunction"

    def __init__(
        self, view: CallsFunctions, function: Callable[..., Any], block: bool | None = None, **flags: Any
    ) -> None:
        """Wrap a function.

        Args:
            view: the view.
            function: the function.
            block: whether a call waits; None: as the view's calls do.
            flags: flags of the view during a call.
        """
        self.view = view
        self.func = function
        self.block = block
        self.flags = flags
        self.__name__ = name_of(function)
        if function.__doc__:
            self.__doc__ = f"{self._shown_as} wrapping:\n{function.__doc__}"
        try:
            self.__signature__ = signature_of(function)
        except (TypeError, ValueError):
            pass  # some builtins have none

    def _blocks(self) -> bool:
        return self.view.block if self.block is None else self.block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.view.temp_flags(block=self._blocks(), **self.flags):
            return self.view.apply(self.func, *args, **kwargs)


class PartsFunction(RemoteFunction):
    """A function that is called with parts of sequences: ``f(seq)``; ``f.map(seq)`` calls it with each item.

    It is ipyparallel's ``ParallelFunction``.
    """

    _shown_as = "ParallelFunction"

    def __init__(
        self,
        view: CallsFunctions,
        function: Callable[..., Any],
        dist: str = "b",
        block: bool | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        label: Any = None,
        **flags: Any,
    ) -> None:
        """Wrap a function.

        Args:
            view: the view.
            function: the function.
            dist: "b": parts are blocks; "r": round robin.
            block: whether a call waits; None: as the view's calls do.
            chunksize: number of items in a task of a load-balanced view.
            ordered: whether iteration over the result keeps the order; of a load-balanced view.
            return_exceptions: return errors among the values.
            label: a name for the calls.
            flags: flags of the view during a call.
        """
        super().__init__(view, function, block, **flags)
        self.dist = dist
        if chunksize is not None and chunksize < 0:
            raise ValueError(f"chunksize must be 0 or more, not {chunksize}: there would be no items")
        self.chunksize = chunksize
        self.ordered = ordered
        self.return_exceptions = return_exceptions
        self.label = label

    def __call__(self, *sequences: Iterable[Any]) -> Any:
        """Call the function with parts of the sequences.  Raises ValueError for sequences of unequal length."""
        found = [_with_length(sequence) for sequence in sequences]
        lengths = [len(sequence) for sequence in found]
        if len(set(lengths)) > 1:
            raise ValueError(f"all sequences must have equal length, but have {lengths}")
        return self._run(found, mapping=False)

    def map(self, *sequences: Iterable[Any]) -> Any:
        """Call the function with each item of the sequences, up to the end of the shortest."""
        if not sequences:
            raise TypeError("must have some sequences to map onto!")
        found = [_with_length(sequence) for sequence in sequences]
        shortest = min(len(sequence) for sequence in found)
        return self._run([sequence[:shortest] for sequence in found], mapping=True)

    def _run(self, sequences: list[Any], mapping: bool) -> Any:
        if not len(sequences[0]):
            return []
        with self.view.temp_flags(**self.flags):
            call = PartsCall(
                self.func,
                sequences,
                dist=self.dist,
                mapping=mapping,
                block=self._blocks(),
                return_exceptions=self.return_exceptions,
                label=self.label,
                chunksize=self.chunksize,
                ordered=self.ordered,
            )
            return self.view.call_parts(call)


def _with_length(sequence: Iterable[Any]) -> Any:
    return sequence if hasattr(sequence, "__len__") and can_slice(sequence) else list(sequence)


def remote(
    view: CallsFunctions, block: bool | None = None, **flags: Any
) -> Callable[[Callable[..., Any]], RemoteFunction]:
    """Return a decorator that makes a `RemoteFunction`."""
    return lambda function: RemoteFunction(view, function, block, **flags)


def parallel(
    view: CallsFunctions, dist: str = "b", block: bool | None = None, ordered: bool = True, **flags: Any
) -> Callable[[Callable[..., Any]], PartsFunction]:
    """Return a decorator that makes a `PartsFunction`."""
    return lambda function: PartsFunction(view, function, dist, block, ordered=ordered, **flags)
