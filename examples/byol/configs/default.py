"""MNIST shrunk to 14x14, for two CPU cores: 1,000 steps of 256 images, two views of each.

python main.py --config=examples/byol/configs/default.py --workdir=runs/byol
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.task = "examples.byol.train"
    config.dataset = "mnist"
    config.batch_size = 256
    config.duration = "1000 steps"
    config.evaluate_sets_every = "25%"
    config.checkpoint_every = "50%"

    config.model.name = "byol"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 1.0
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "10%"

    config.averages = ml_collections.ConfigDict()
    config.averages.target = default.average("cosine_update", tau=0.1)
    config.best_curve = "raw"  # its average only makes targets
    return config
