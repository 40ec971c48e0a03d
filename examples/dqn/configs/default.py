"""CartPole on two CPU cores: 100,000 actions and 10,000 steps of training in seconds.

python main.py --config=examples/dqn/configs/default.py --workdir=runs/dqn
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.task = "examples.dqn.train"
    config.dataset = "CartPole-v1"
    config.batch_size = 128
    config.duration = "10000 steps"
    config.eval_every = "500 steps"
    config.checkpoint_every = "10000 steps"

    config.model.name = "q_network"
    config.model.hidden_sizes = (120, 84)

    config.optimizer.name = "adamw"  # without weight decay, Adam
    config.optimizer.learning_rate = 1e-3

    # The mean age of its weights is that of hard_update with a period of 49 steps.
    config.averages = ml_collections.ConfigDict()
    config.averages.target = default.average("soft_update", tau=0.04)
    config.best_curve = "raw"  # what acts is the network; its average only makes targets
    return config
