"""Colours of what notebooks show, as CSS.

Text keeps the colour of the notebook's theme; what failed has another background, and a mark for those who do not see
colours.  JupyterLab's variables come first, so that a theme decides; a value for every other place follows.
``tests/unit/test_colours.py`` computes the contrast of each pair in JupyterLab's light and dark theme, and without one.
"""

from __future__ import annotations

ERROR_BACKGROUND = "var(--jp-rendermime-error-background, rgba(244, 67, 54, 0.2))"
"""Behind text about a failure, as JupyterLab shows an error of its own."""
MUTED = "var(--jp-content-font-color2, inherit)"
"""Of text that only comments."""
TRACK = "var(--jp-border-color2, rgba(128, 128, 128, 0.3))"
"""Of a bar: what has not begun."""
BARS = {
    "succeeded": "var(--jp-success-color1, #388e3c)",
    "failed": "var(--jp-error-color1, #d32f2f)",
    "running": "var(--jp-info-color1, #0288d1)",
}
"""Of a bar: its parts by state.  A bar stands beside the same numbers as text."""
TERMINAL = {"succeeded": "green", "failed": "red", "running": "cyan"}
"""The same in a terminal, in rich's words."""
