"""What a person sees: JupyterLab in a browser, notebooks, terminals."""
