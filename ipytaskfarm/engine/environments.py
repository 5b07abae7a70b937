"""The environment that this engine is prepared for: set up with its first task, torn down on its way out."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ..core.errors import EnvironmentSetupError
from ..core.messages import FromEngine, SetUp
from ..serialization.modules import keep_active
from ..serialization.pack import unpack_environment
from .baseline import Baseline
from .namespace import Namespace


class Environments:
    """One environment at most, for the engine's whole life."""

    def __init__(
        self, engine: str, namespace: Namespace, baseline: Baseline, send: Callable[[FromEngine], None]
    ) -> None:
        self._engine = engine
        self._namespace = namespace
        self._baseline = baseline
        self._send = send
        self.ready: str | None = None
        """Identity of the environment that is set up."""
        self.failed = False
        """A setup did not come to its end: nothing that needs one runs here any more."""
        self.instance: Any = None

    def set_up(self, identity: str, code: bytes) -> None:
        """Unpack it, go to its folder, import its preloads, call its `setup`.  Raises EnvironmentSetupError.

        What this leaves (folder, environment variables, ``sys.path``) is what every later task begins with."""
        if self.ready is not None:
            raise EnvironmentSetupError("this engine is set up for another environment already")
        self.failed = True
        try:
            instance = unpack_environment(code, self._namespace.names)
            self.instance = instance
            keep_active(always=True)
            self._namespace.provide("env", instance)
            if instance.cwd is not None:
                os.chdir(instance.cwd)
            for module in instance.preload:
                importlib.import_module(module)
            instance.setup()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise EnvironmentSetupError(f"the setup of {type(self.instance).__name__} failed: {text}") from error
        self._baseline.renew()
        self.failed = False
        self.ready = identity
        self._send(SetUp(self._engine, identity))

    def give_up(self, identity: str, why: str) -> None:
        """The setup has failed, or was interrupted: tell the farm that this engine is of no use to others."""
        self._send(SetUp(self._engine, identity, why))

    def tear_down(self) -> None:
        """The engine is about to end in good order.  What this raises goes to the engine's output."""
        if self.ready is None:
            return
        self.ready = None
        try:
            self.instance.teardown()
        except BaseException:  # SystemExit too: there is still a kernel to be closed
            traceback.print_exc(file=sys.__stderr__)
