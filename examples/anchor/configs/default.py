"""MNIST as a contextual bandit, for two CPU cores.

python main.py --config=examples/anchor/configs/default.py --workdir=runs/anchor
"""

import ml_collections

from configs import default

SUPERVISED = "500 steps"  # of learning from labels


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.task = "examples.anchor.train"
    config.dataset = "mnist"
    config.batch_size = 128
    config.duration = "1500 steps"
    config.eval_every = "50 steps"
    config.checkpoint_every = "50%"

    config.augment.crop_padding = 2
    config.model.name = "policy_and_reward"
    config.model.hidden_sizes = (128,)

    config.optimizer.learning_rate = 0.05

    # Copies of the network until there is a reward to follow; then the first stands still.
    config.averages = ml_collections.ConfigDict()
    config.averages.start = default.average("hard_update", period="1000000 steps", start=SUPERVISED)
    config.averages.anchor = default.average("soft_update", tau=0.01, start=SUPERVISED)
    config.best_curve = "raw"
    return config
