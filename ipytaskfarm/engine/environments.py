"""The task environment of an engine: set up for its first task, and torn down at the engine's end."""

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
from ..serialization.setup_globals import SetupWatch
from .baseline import Baseline
from .namespace import Namespace


class Environments:
    """The environment of the engine: at most one in the engine's whole life."""

    def __init__(
        self, engine: str, namespace: Namespace, baseline: Baseline, send: Callable[[FromEngine], None]
    ) -> None:
        self._engine = engine
        self._namespace = namespace
        self._baseline = baseline
        self._send = send
        self.ready: str | None = None
        """The identity of the environment that is set up."""
        self.failed = False
        """Whether a setup did not finish. Then no task that needs an environment can run here."""
        self.instance: Any = None

    def set_up(self, identity: str, code: bytes) -> None:
        """Unpack the environment, change to its folder, import its preloads and call its `setup`.

        The changes that this makes (folder, environment variables, ``sys.path``) belong to the surroundings of every
        later task.

        Raises:
            EnvironmentSetupError: a step failed.
        """
        if self.ready is not None:
            raise EnvironmentSetupError("this engine is set up for another environment already")
        self.failed = True
        try:
            instance, brought = unpack_environment(code, self._namespace.names)
            self.instance = instance
            keep_active(always=True)
            self._namespace.provide("env", instance)
            if instance.cwd is not None:
                os.chdir(instance.cwd)
            for module in instance.preload:
                importlib.import_module(module)
            watch = SetupWatch(instance, brought)
            instance.setup()
            watch.record()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise EnvironmentSetupError(f"the setup of {type(self.instance).__name__} failed: {text}") from error
        self._baseline.renew()
        self.failed = False
        self.ready = identity
        self._send(SetUp(self._engine, identity))

    def give_up(self, identity: str, why: str) -> None:
        """Tell the farm that the setup failed or was interrupted, so that this engine cannot run tasks of the
        environment.
        """
        self._send(SetUp(self._engine, identity, why))

    def tear_down(self) -> None:
        """Call the environment's `teardown` before an orderly end. An error goes to the engine's output."""
        if self.ready is None:
            return
        self.ready = None
        try:
            self.instance.teardown()
        except BaseException:  # SystemExit too: the kernel has yet to be closed
            traceback.print_exc(file=sys.__stderr__)
