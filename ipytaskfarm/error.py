"""`ipytaskfarm.errors` under the name that its module had in IPython 0.10 (``IPython.kernel.error``)."""

from .errors import *  # noqa: F403 - all of its names, and no others
from .errors import __all__ as __all__
