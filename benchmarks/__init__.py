"""Measurements: one file per question, each with its results beside it."""
