"""What runs inside an engine's process: an IPython kernel that also runs tasks."""

from __future__ import annotations
