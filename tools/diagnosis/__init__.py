"""The methods of `tools.diagnose`."""
