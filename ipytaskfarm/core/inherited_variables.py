"""Environment variables by which a farm's processes hand on what they found, so that tasks find it too."""

from __future__ import annotations

from typing import Final

UMASK_BEFORE: Final = "IPYTASKFARM_UMASK"
"""The user's umask, in octal digits, where a launcher had to set its own before it could start an agent."""
PYTHONPATH_BEFORE: Final = "IPYTASKFARM_PYTHONPATH"
"""The user's PYTHONPATH, where it was made longer so that children find this package."""
