"""Pendulum on two CPU cores: TD3 with 40,000 actions and 10,000 steps of training.

python main.py --config=examples/td3/configs/default.py --workdir=runs/td3
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.task = "examples.td3.train"
    config.dataset = "Pendulum-v1"
    config.batch_size = 128
    config.duration = "10000 steps"
    config.log_every = "500 steps"
    config.eval_every = "500 steps"
    config.checkpoint_every = "10000 steps"

    config.model.name = "actor_critics"
    config.model.hidden_sizes = (64, 64)

    config.optimizer.name = "adamw"  # without weight decay, Adam
    config.optimizer.learning_rate = 1e-3
    config.optimizer.groups.actor = default.group("actor/", every=2)  # as published, after the critics have moved twice
    config.optimizer.groups.critics = default.group("critics/")

    config.averages = ml_collections.ConfigDict()
    config.averages.target = default.average("soft_update", tau=0.005)
    config.best_curve = "raw"  # what acts is the actor; the average only makes targets
    return config
