"""DDPG (Lillicrap et al. 2016): TD3 without its three additions.

python main.py --config=examples/td3/configs/ddpg.py --workdir=runs/ddpg
"""

import ml_collections

from examples.td3.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.num_critics = 1  # no clipped double Q-learning,
    config.loss.smoothing = 0.0  # no smoothing of the target's actions,
    config.optimizer.groups.actor.every = 1  # and no delay
    return config
