"""`depend` and `require`, which bind a function to what it needs on an engine, and `Dependency` on other tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from ipytaskfarm.adapters.ipyparallel.errors import UnmetDependency
from ipytaskfarm.engine import is_engine, user_namespace


class dependent:  # noqa: N801 - ipyparallel's name
    """A function with a condition: it runs only on engines where ``df(*dargs, **dkwargs)`` is not False.

    Made by `depend` and `require`.
    """

    def __init__(
        self, function: Callable[..., Any], condition: Callable[..., Any], *dargs: Any, **dkwargs: Any
    ) -> None:
        self.f = function
        self.df = condition
        self.dargs = dargs
        self.dkwargs = dkwargs
        self.__name__ = getattr(function, "__name__", "f")

    def check_dependency(self) -> None:
        """Raise UnmetDependency if the condition is false here."""
        if self.df(*self.dargs, **self.dkwargs) is False:
            raise UnmetDependency(f"{self.__name__}: its dependency is not met on this engine")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_engine():
            self.check_dependency()
        return self.f(*args, **kwargs)


class depend:  # noqa: N801 - ipyparallel's name
    """Decorate a function with a condition on its engine: ``@depend(is_linux)``, ``@depend(has_memory, 2**30)``."""

    def __init__(self, condition: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.f = condition
        self.args = args
        self.kwargs = kwargs

    def __call__(self, function: Callable[..., Any]) -> dependent:
        return dependent(function, self.f, *self.args, **self.kwargs)


def provide(modules: Iterable[str], objects: dict[str, Any]) -> bool:
    """Import modules and bind objects in the engine's namespace; outside engines, in ``__main__``.

    Raises UnmetDependency for a module that cannot be imported here.
    """
    if is_engine():
        names = user_namespace()
    else:
        import __main__

        names = vars(__main__)
    for name in modules:
        try:
            exec(f"import {name}", names)
        except ImportError as error:
            raise UnmetDependency(f"{name}: {error}") from error
    names.update(objects)
    return True


def require(*objects: Any, **mapping: Any) -> depend:
    """Return a decorator that provides modules, functions and other objects on the engine before each call.

    Args:
        objects: modules, names of modules, and functions, which are bound to their own names.
        mapping: other objects by name.

    Raises TypeError for an object without a name.
    """
    modules: list[str] = []
    for each in objects:
        if isinstance(each, str):
            modules.append(each)
        elif isinstance(each, ModuleType):
            modules.append(each.__name__)
        elif hasattr(each, "__name__"):
            mapping[each.__name__] = each
        else:
            raise TypeError(f"Objects other than modules and functions must be passed by kwarg, but got: {type(each)}")
    return depend(provide, tuple(modules), mapping)


class Dependency(set[str]):
    """A set of message ids that a task waits for.

    Args:
        dependencies: message ids, results, or what `as_dict` returned.
        all: whether all must have ended, or any.
        success: whether a success counts.
        failure: whether a failure counts.

    Raises ValueError if neither counts.
    """

    def __init__(self, dependencies: Any = (), all: bool = True, success: bool = True, failure: bool = False) -> None:
        if isinstance(dependencies, dict):
            all = dependencies.get("all", True)
            success = dependencies.get("success", success)
            failure = dependencies.get("failure", failure)
            dependencies = dependencies.get("dependencies", [])
        super().__init__(ids_of_messages(dependencies))
        if not (success or failure):
            raise ValueError("Must depend on at least one of successes or failures!")
        self.all = all
        self.success = success
        self.failure = failure

    def check(self, completed: set[str], failed: set[str] | None = None) -> bool:
        """Return whether the dependency is met, for these sets of successful and failed tasks."""
        if not self:
            return True
        against = set(completed) if self.success else set()
        if failed is not None and self.failure:
            against |= failed
        return self <= against if self.all else not self.isdisjoint(against)

    def unreachable(self, completed: set[str], failed: set[str] | None = None) -> bool:
        """Return whether the dependency can never be met any more."""
        if not self:
            return False
        against = set() if self.success else set(completed)
        if failed is not None and not self.failure:
            against |= failed
        return not self.isdisjoint(against) if self.all else self <= against

    def as_dict(self) -> dict[str, Any]:
        """Return the dependency as a dict, from which the constructor makes it again."""
        return {"dependencies": list(self), "all": self.all, "success": self.success, "failure": self.failure}


def ids_of_messages(found: Any) -> list[str]:
    """Return the message ids in a message id, a result, or several of them.

    Raises TypeError for another object.
    """
    several = [found] if isinstance(found, str) or hasattr(found, "msg_ids") else found
    ids: list[str] = []
    for each in several:
        if isinstance(each, str):
            ids.append(each)
        elif hasattr(each, "msg_ids"):
            ids += each.msg_ids
        else:
            raise TypeError(f"invalid dependency type: {type(each)!r}")
    return ids
