"""The modules of the live view's page, as far as their text can be read without a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipytaskfarm.system.jupyter_extension import SOURCE
from ipytaskfarm.web.handlers import STATIC

MODULES = sorted([*STATIC.glob("*.js"), *(SOURCE / "labextension" / "static").glob("*.js")])
_IMPORTED = re.compile(r"^import \{([^}]*)\}", re.MULTILINE)
_DECLARED = re.compile(r"\b(?:const|let|var|function)\s+([\w$]+|\{[^}]*\}|\[[^\]]*\])")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_variable_hides_what_its_module_imports(path: Path) -> None:
    """A section that counted in a variable `unknown` could not call the function of that name any more."""
    text = path.read_text()
    imported = {name.split(" as ")[-1].strip() for names in _IMPORTED.findall(text) for name in names.split(",")}
    declared = {name for found in _DECLARED.findall(text) for name in re.findall(r"[\w$]+", found)}
    assert not imported & declared
