"""Tests of the user's view: JupyterLab in a browser, notebooks, terminals."""
