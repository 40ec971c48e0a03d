"""Short programs that show one thing each, run as `python -m examples.NAME` from the root of the repository."""
