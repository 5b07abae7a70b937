"""`MultiEngineClient`: commands to all engines of a farm, or to those that you name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from operator import index
from os import PathLike
from typing import Any, TypeAlias

import msgspec

from ..core import errors, messages
from ..core.messages import ExecuteBody, PropertiesBody, PushBody
from ..doors.pack import pack
from ..doors.runtime import Where
from . import commands, sessions
from .commands import PendingResult, ResultList
from .display import table
from .tasks import _push

Targets: TypeAlias = int | Sequence[int] | str | None

_encode = msgspec.msgpack.Encoder().encode


class StickyEntries(list[tuple[str, str, str]]):
    """(key, verb, text) of what every fresh engine runs, in that order."""

    def __repr__(self) -> str:
        return table(("key", "verb", "what"), self) if self else "nothing is sticky"


class MultiEngineClient:
    """Your connection to a farm's engines, one by one or all at once.

    `targets` ('all', an id, or a list of ids) and `block` are the defaults of every call that takes them.
    Every result is a list with one entry per target, also for a single id.  Arguments: see `TaskClient`.

    Commands to one engine run in order, after the task that is running there.  An unknown id raises
    InvalidEngineID, a farm without engines NoEnginesRegistered; what engines raise comes as a CompositeError.
    From IPython 0.10.
    """

    def __init__(
        self, where: Where = None, *, key_file: str | PathLike[str] | None = None, timeout: float | None = None
    ) -> None:
        self._session = sessions.connect(where, key_file, timeout)
        self._closed = False
        self.farm = self._session.farm
        self.targets: Targets = "all"
        self.block = True

    def close(self) -> None:
        """End this client; the engines are not touched."""
        if not self._closed:
            self._closed = True
            sessions.release(self._session)

    def __enter__(self) -> MultiEngineClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MultiEngineClient of farm {self.farm!r}{', closed' if self._closed else ''}>"

    # ----------------------------------------------------------------------------------------------
    # Engines

    def engines(self) -> list[messages.EngineRow]:
        """All engines, by id, with their state and facts."""
        reply = self._session.ask(messages.Engines())
        assert isinstance(reply, messages.EngineTable)
        return reply.rows

    def get_ids(self) -> list[int]:
        """The ids of the engines that take commands now."""
        return [row.id for row in self.engines() if row.state in ("idle", "busy")]

    def __len__(self) -> int:
        return len(self.get_ids())

    def __bool__(self) -> bool:
        return True  # a client is there, also when no engine is

    def _chosen(self, targets: Targets) -> list[int] | None:
        """Engine ids; None: all, whoever they are when the command arrives."""
        targets = self.targets if targets is None else targets
        if isinstance(targets, str) and targets == "all":
            return None
        ids = [_engine_id(i) for i in targets] if isinstance(targets, (list, tuple, range)) else [_engine_id(targets)]
        if not ids:
            raise ValueError("targets is empty: name at least one engine id, or 'all'")
        if len(set(ids)) < len(ids):
            raise ValueError(f"targets names an engine twice: {ids}")
        return ids

    def _send(self, verb: str, body: bytes, targets: Targets, block: bool | None, read: Callable[[bytes], Any]) -> Any:
        pending = PendingResult(self._session, self._chosen(targets), verb, body, read)
        return pending.get_result() if (self.block if block is None else block) else pending

    # ----------------------------------------------------------------------------------------------
    # Commands

    def execute(self, lines: str, targets: Targets = None, block: bool | None = None, *, sticky: bool = False) -> Any:
        """Run code on engines; a `ResultList` of dicts ``{id, number, input, stdout, stderr, display}``.

        sticky=True: every fresh engine runs it too, for as long as the farm lives (see `sticky`); the names that
        it leaves survive `reset` and ``clear_before``.
        """
        if not isinstance(lines, str):
            raise TypeError(f"lines must be a str of code, not {type(lines).__name__}")
        body = _encode(ExecuteBody(lines, bool(sticky)))
        if sticky:
            key = f"execute:{hashlib.sha256(lines.encode()).hexdigest()[:16]}"
            return self._send_sticky([(key, body, lines)], "execute", body, targets, block, commands.executed)
        return self._send("execute", body, targets, block, commands.executed)

    def push(
        self, namespace: dict[str, Any], targets: Targets = None, block: bool | None = None, *, sticky: bool = False
    ) -> Any:
        """Put names and values into the engines' namespace.  sticky: into that of every fresh engine too."""
        if not isinstance(namespace, dict):
            raise TypeError(f"push takes a dict of names and values, not {type(namespace).__name__}")
        checked = _push(namespace)
        body = _encode(PushBody(pack(checked), bool(sticky)))
        if sticky:
            entries = [
                (f"push:{name}", _encode(PushBody(pack({name: value}), True)), f"{name} = {value!r:.80}")
                for name, value in checked.items()
            ]
            return self._send_sticky(entries, "push", body, targets, block, commands.nothing)
        return self._send("push", body, targets, block, commands.nothing)

    push_function = push

    def pull(self, keys: str | Sequence[str], targets: Targets = None, block: bool | None = None) -> Any:
        """The values of a name, ``[v …]``, or of several, ``[[v1 … vk] …]``.  Missing: CompositeError(NameError)."""
        wanted = _keys(keys)
        read = _first if isinstance(keys, str) else commands.value
        return self._send("pull", _encode(wanted), targets, block, read)

    pull_function = pull

    def zip_pull(self, keys: str | Sequence[str], targets: Targets = None) -> list[Any]:
        """``[(k1 on each engine), (k2 on each) …]``; for a single engine id ``[v1, v2 …]``."""
        values = self.pull(_keys(keys), targets, True)
        if isinstance(self.targets if targets is None else targets, int):
            return list(values[0])
        return list(zip(*values, strict=True))

    def get_result(self, i: int | None = None, targets: Targets = None, block: bool | None = None) -> Any:
        """Command number `i` of each engine, or its last one.  Missing: CompositeError(IndexError)."""
        number = None if i is None else index(i)
        return self._send("get_result", _encode(number), targets, block, commands.executed)

    def keys(self, targets: Targets = None, block: bool | None = None) -> Any:
        """The names in each engine's namespace."""
        return self._send("keys", b"", targets, block, commands.names)

    def reset(self, targets: Targets = None, block: bool | None = None) -> Any:
        """Empty the engines' namespaces; `id`, sticky names and properties stay."""
        return self._send("reset", b"", targets, block, commands.nothing)

    def __getitem__(self, key: str) -> Any:
        if not isinstance(key, str):
            raise TypeError(f"mec[…] takes a name, not {type(key).__name__}")
        return self.pull(key, block=True)

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"mec[…] = takes a name, not {type(key).__name__}")
        self.push({key: value}, block=True)

    # ----------------------------------------------------------------------------------------------
    # Properties

    def set_properties(
        self, properties: dict[str, Any], targets: Targets = None, block: bool | None = None, *, sticky: bool = False
    ) -> Any:
        """Set properties, which `depend` functions read.  InvalidProperty: unpicklable, or the name of a fact."""
        if not isinstance(properties, dict):
            raise TypeError(f"properties must be a dict, not {type(properties).__name__}")
        checked = _push(properties)
        body = _properties("set", packed=_packed_properties(checked))
        if sticky:
            entries = [
                (f"property:{name}", _properties("set", packed=pack({name: value})), f"{name} = {value!r:.80}")
                for name, value in checked.items()
            ]
            return self._send_sticky(entries, "properties", body, targets, block, commands.nothing)
        return self._send("properties", body, targets, block, commands.nothing)

    def get_properties(
        self,
        keys: str | Sequence[str] | None = None,
        facts: bool = False,
        targets: Targets = None,
        block: bool | None = None,
    ) -> Any:
        """A dict per engine, of all properties or of some; with facts=True the engine's facts too."""
        body = _properties("get", None if keys is None else _keys(keys), facts=facts)
        return self._send("properties", body, targets, block, commands.value)

    def has_properties(self, keys: str | Sequence[str], targets: Targets = None, block: bool | None = None) -> Any:
        """A list of booleans per engine, one per key."""
        return self._send("properties", _properties("has", _keys(keys)), targets, block, commands.value)

    def del_properties(self, keys: str | Sequence[str], targets: Targets = None, block: bool | None = None) -> Any:
        """Delete properties.  Missing: CompositeError(KeyError)."""
        return self._send("properties", _properties("del", _keys(keys)), targets, block, commands.nothing)

    def clear_properties(self, targets: Targets = None, block: bool | None = None) -> Any:
        """Delete all properties."""
        return self._send("properties", _properties("clear"), targets, block, commands.nothing)

    # ----------------------------------------------------------------------------------------------
    # Sticky state

    def sticky(self) -> StickyEntries:
        """What every fresh engine runs, after the farm's start-up code: (key, verb, text), in that order."""
        reply = self._session.ask(messages.ListSticky())
        assert isinstance(reply, messages.StickyTable)
        return StickyEntries(reply.rows)

    def clear_sticky(self, keys: str | Iterable[str] | None = None) -> int:
        """Forget sticky entries, all or those of these keys; returns how many.  Present engines keep their names."""
        wanted = None if keys is None else [keys] if isinstance(keys, str) else list(keys)
        reply = self._session.ask(messages.ClearSticky(wanted))
        assert isinstance(reply, messages.Number)
        return reply.value

    def _send_sticky(
        self,
        entries: list[tuple[str, bytes, str]],
        verb: str,
        body: bytes,
        targets: Targets,
        block: bool | None,
        read: Callable[[bytes], Any],
    ) -> Any:
        """Store first, then send to the engines that are here: one that starts in between may run it twice."""
        if (self.targets if targets is None else targets) != "all":
            raise ValueError("sticky=True is for all engines, also those to come: leave targets at 'all'")
        for key, entry, text in entries:
            self._session.ask(messages.SetSticky(key, verb, entry, text))
        pending = PendingResult(self._session, None, verb, body, read)
        if not (self.block if block is None else block):
            return pending
        try:
            return pending.get_result()
        except errors.NoEnginesRegistered:
            return ResultList()
        except errors.CompositeError as error:
            if len({engine_id for engine_id, _, _ in error.elist}) == len(pending.engines):
                # It fails everywhere: kept, it would spoil every engine to come.
                self._session.ask(messages.ClearSticky([key for key, _, _ in entries]))
            raise


def _engine_id(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError(f"targets must be an int, a list or tuple of ints, or 'all', not {value!r}")
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"targets must be an int, a list or tuple of ints, or 'all', not {value!r}") from None


def _keys(keys: str | Sequence[str]) -> list[str]:
    names = [keys] if isinstance(keys, str) else list(keys)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"keys must be a name, or a list or tuple of names, not {type(name).__name__}")
    return names


def _first(body: bytes) -> Any:
    return commands.value(body)[0]


def _properties(op: str, keys: list[str] | None = None, packed: bytes | None = None, facts: bool = False) -> bytes:
    return _encode(PropertiesBody(op, keys, packed, bool(facts)))


def _packed_properties(properties: dict[str, Any]) -> bytes:
    try:
        return pack(properties)
    except errors.UnpickleableException as error:
        raise errors.InvalidProperty(f"a property that cannot travel: {error}") from None
