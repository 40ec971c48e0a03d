"""How long JAX has been tracing and compiling, which is neither training nor evaluation."""

import time
from typing import Any

import jax

_found: list[tuple[float, float]] = []  # of each program and stage when it was done, and how long it took


def seconds(since: float) -> float:
    """The seconds that this process has spent on it since a time of `time.monotonic`."""
    return sum(duration for end, duration in _found if end > since)


def _note(event: str, duration_secs: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        _found.append((time.monotonic(), duration_secs))


jax.monitoring.register_event_duration_secs_listener(_note)
