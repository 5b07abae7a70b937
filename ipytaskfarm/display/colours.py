"""Colours for notebooks, as CSS.

Text keeps the colour of the notebook's theme.  Failures have another background, and a mark for readers who do not see
colours.  Each value first names a variable of JupyterLab, so that a theme decides, and then a value for other places.
``tests/unit/test_colours.py`` computes the contrast of each pair in JupyterLab's light and dark theme, and without one.
"""

from __future__ import annotations

ERROR_BACKGROUND = "var(--jp-rendermime-error-background, rgba(244, 67, 54, 0.2))"
"""The background of text about a failure, as JupyterLab uses it for errors."""
MUTED = "var(--jp-content-font-color2, inherit)"
"""The colour of additional remarks."""
TRACK = "var(--jp-border-color2, rgba(128, 128, 128, 0.3))"
"""The colour of a bar's remaining part."""
BARS = {
    "succeeded": "var(--jp-success-color1, #388e3c)",
    "failed": "var(--jp-error-color1, #d32f2f)",
    "running": "var(--jp-info-color1, #0288d1)",
}
"""The colours of a bar's parts by state.  The same numbers stand beside the bar as text."""
TERMINAL = {"succeeded": "green", "failed": "red", "running": "cyan"}
"""The same colours in a terminal, by rich's names."""
