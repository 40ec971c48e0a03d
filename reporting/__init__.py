"""Turns the files of workdirs into text and pictures, without JAX."""
