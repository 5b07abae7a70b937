"""Sphinx: ``make docs`` builds these pages into ``docs/_build/html``; a warning is an error."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_root = Path(__file__).parents[1]
_version = _root / "ipytaskfarm" / "version.py"
# Sphinx takes no page from outside its own folder, and does not find its way back from a symbolic link.
shutil.rmtree(_root / "docs" / "notebooks", ignore_errors=True)
shutil.copytree(_root / "notebooks", _root / "docs" / "notebooks", ignore=shutil.ignore_patterns(".*"))

project = "ipytaskfarm"
author = "The ipytaskfarm developers"
project_copyright = "2026, The ipytaskfarm developers"
# Read, not imported: the pages can be built without the package's dependencies.
release = version = next(
    ast.literal_eval(node.value)
    for node in ast.parse(_version.read_text()).body
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__"
)

extensions = ["myst_nb"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# Pages show code that needs a farm; it is tested in tests/, not run here. The notebooks are shown as they were saved.
nb_execution_mode = "off"

html_theme = "pydata_sphinx_theme"
html_title = "ipytaskfarm"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False


def _into_the_folder(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Let links to notebooks, which lead from a page in the repository to the root, lead to the copies above."""
    source[0] = source[0].replace("](../notebooks/", "](notebooks/")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _into_the_folder)
