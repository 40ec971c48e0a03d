"""Commands on runs, each `python -m tools.NAME`."""
