"""Environments by name: CartPole-v1 is cartpole.py, others are those of gymnax, if it is installed."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from examples.dqn import cartpole
from runtime.errors import UserError

INSTALL = "pip install -c constraints.txt 'gymnax>=1,<2'"


class Environment(NamedTuple):
    """Pure functions, as those of cartpole.py.

    Attributes:
        reset: takes a key; returns an observation and a state.
        step: takes a key, a state and an action; returns observation, state, reward, `terminated`, `truncated` and
            `info` with the `final_observation`.
        num_actions: actions are 0, 1, ..., one less than this.
        max_steps: of an episode.
    """

    reset: Callable[..., Any]
    step: Callable[..., Any]
    num_actions: int
    max_steps: int


@functools.cache
def find(name: str) -> Environment:
    """The environment that `config.data.environment` names; always the same object, for compiled programs.

    Raises:
        UserError: there is none of this name, its actions are numbers, or gymnax is not installed.
    """
    if name == "CartPole-v1":
        return Environment(cartpole.reset, cartpole.step, cartpole.num_actions, cartpole.MAX_STEPS)
    found = f"data.environment = {name!r}"
    try:
        gymnax = importlib.import_module("gymnax")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{found}: only 'CartPole-v1' is there without gymnax, which is not installed: {INSTALL}"
        ) from error
    if name not in gymnax.registered_envs:
        raise UserError(f"{found}: must be one of {', '.join(gymnax.registered_envs)}")
    environment, params = gymnax.make(name)
    if not hasattr(environment.action_space(params), "n"):
        raise UserError(f"{found}: its actions are numbers; Q-learning chooses among a few, as in 'Breakout-MinAtar'")
    return Environment(environment.reset, environment.step, environment.num_actions, params.max_steps_in_episode)
