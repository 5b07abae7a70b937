"""The world, JupyterLab and the browser that tests of pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from ipytaskfarm import Farm
from tests.conftest import Dirs
from tests.support.browser import CHROMIUM_FLAGS, Lab, assert_no_inhabitants, chromium, drawing_world, jupyterlab
from tests.support.live import install_for_jupyter


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Provide Debian's Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def world() -> Iterator[Dirs]:
    """Provide a world for servers, kernels and browsers."""
    with drawing_world() as dirs:
        yield dirs
        assert_no_inhabitants(dirs.root)


@pytest.fixture(scope="module")
def lab(world: Dirs, farm: Farm) -> Iterator[Lab]:
    """Provide JupyterLab beside the module's farm, with the package's extensions, as an installed wheel has them."""
    install_for_jupyter(world)
    with jupyterlab(world) as lab:
        yield lab
