"""Environments as the scheduler knows them: which engines have one, and which tasks and jobs need it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..requirements import Environment
from .entries import EngineEntry


@dataclass(slots=True)
class EnvironmentUse:
    """One environment, with the engines that have it and the number of tasks and jobs that need it."""

    environment: Environment
    engines: dict[EngineEntry, None] = field(default_factory=dict)
    """The engines that have the environment, or are being prepared for it."""
    unfinished: int = 0
    """How many tasks that need it have not ended."""
    jobs: set[str] = field(default_factory=set)
    """Jobs that use it and have not ended."""

    @property
    def referenced(self) -> bool:
        """Return whether a task or a job may still need the environment."""
        return bool(self.unfinished or self.jobs)


@dataclass(slots=True)
class EnvironmentRegistry:
    """The environments that engines have or tasks need."""

    uses: dict[str, EnvironmentUse] = field(default_factory=dict)
    """Identity -> its use."""
    by_unique_id: dict[str, str] = field(default_factory=dict)
    """A user's own id of an environment -> the latest identity with this id."""
    perhaps_unused: dict[str, None] = field(default_factory=dict)
    """Identities that are examined at the end of this turn."""

    def use_of(self, environment: Environment) -> EnvironmentUse:
        """Return the use of an environment; it is made if the environment is new."""
        use = self.uses.get(environment.identity)
        if use is None:
            use = self.uses[environment.identity] = EnvironmentUse(environment)
        return use

    def assign(self, engine: EngineEntry, environment: Environment) -> None:
        """Give a blank engine its environment, which it keeps until it ends.

        The engine is set up with the first task that it runs.
        """
        engine.environment = environment
        self.use_of(environment).engines[engine] = None

    def forget_if_unused(self, identity: str) -> None:
        """Forget an environment that no engine has and no task or job needs."""
        use = self.uses.get(identity)
        if use is not None and not use.referenced and not use.engines:
            del self.uses[identity]
            if use.environment.unique is not None and self.by_unique_id.get(use.environment.unique) == identity:
                del self.by_unique_id[use.environment.unique]
