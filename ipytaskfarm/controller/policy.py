"""Loads a queue policy by its name, and protects the farm from its errors."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

import msgspec

from ..core.errors import QueuePolicyError
from ..core.scheduler.queue_policy import PolicyKey, TaskInfo, fifo_key
from ..policies import FIFO

log = logging.getLogger(__name__)


def load_policy(name: str, paths: list[str]) -> PolicyKey:
    """Return the key function of ``module:Class``, after one trial call.

    Raises:
        QueuePolicyError: the policy cannot be used. The message has the reason.
    """
    module_name, _, class_name = name.partition(":")
    if not class_name:
        raise QueuePolicyError(f"queue policy {name!r}: expected module:Class, for example ipytaskfarm.policies:LIFO")
    sys.path.extend(path for path in paths if path not in sys.path)
    try:
        chosen = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise QueuePolicyError(
            f"queue policy {name!r} cannot be loaded: {error} (--policy-path adds a folder)"
        ) from error
    if chosen is FIFO:
        return fifo_key
    try:
        key: PolicyKey = chosen().key
        if chosen.__module__ != FIFO.__module__:
            key(TaskInfo(0, 0, "", 0, 0))
            key = _guarded(key, name)
    except Exception as error:
        raise QueuePolicyError(f"queue policy {name!r} raised {type(error).__name__}: {error}") from error
    return key


def _guarded(key: PolicyKey, name: str) -> PolicyKey:
    """Wrap a policy so that a task for which it raises is ordered as FIFO, and the farm goes on."""
    fallback: list[Any] = []

    def guarded(info: TaskInfo) -> _Key:
        if info.served is not None:
            info = msgspec.structs.replace(info, served=info.served.value)
        try:
            return _Key(key(info))
        except Exception as error:
            if not fallback:
                fallback.append(error)
                log.warning(
                    "queue policy %s raised %s: %s; such tasks count as FIFO", name, type(error).__name__, error
                )
            return _Key(fifo_key(info))

    return guarded


class _Key:
    """A policy's key.  Keys that cannot be compared count as equal."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Key) -> bool:
        try:
            return bool(self.value < other.value)
        except Exception:  # a user's own comparison
            return False

    def __gt__(self, other: _Key) -> bool:
        return other < self

    def __le__(self, other: _Key) -> bool:
        return not other < self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and not self < other and not other < self

    def __hash__(self) -> int:
        return 0
