"""Sphinx configuration: Markdown pages, warnings are errors (``tox run -e docs``)."""

project = "pytest-ipvs"
author = "The pytest-ipvs developers"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
myst_heading_anchors = 3
