"""The choices for values in failures.  Processes need them before their messages, which take longer to import."""

from __future__ import annotations

FAILURE_VALUES = ("masked", "all", "none")
"""Which local variables of the user's frames travel with a failure, as text: all but those whose name looks like a
secret's, all, or none."""
