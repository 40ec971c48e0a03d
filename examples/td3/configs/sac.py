"""Soft actor-critic (Haarnoja et al. 2018) with a fixed temperature.

python main.py --config=examples/td3/configs/sac.py --workdir=runs/sac
"""

import ml_collections

from examples.td3.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.stochastic = True
    config.loss.temperature = 0.2
    config.loss.target_actor = False
    config.loss.smoothing = 0.0
    config.data.noise = 0.0  # the actor draws its actions
    config.optimizer.groups.actor.every = 1
    return config
