"""Environment variables by which a farm's processes pass the user's settings on, so that tasks find them."""

from __future__ import annotations

from typing import Final

UMASK_BEFORE: Final = "IPYTASKFARM_UMASK"
"""The user's umask in octal digits, if a launcher had to change it before it could start an agent."""
PYTHONPATH_BEFORE: Final = "IPYTASKFARM_PYTHONPATH"
"""The user's PYTHONPATH, where it was made longer so that children find this package."""
