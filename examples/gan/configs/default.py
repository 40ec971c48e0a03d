"""MNIST shrunk to 14x14, for two CPU cores: 10,000 steps of 128 at a constant learning rate, and four averages.

python main.py --config=examples/gan/configs/default.py --workdir=runs/gan
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.task = "examples.gan.train"
    config.dataset = "mnist"
    config.batch_size = 128
    config.duration = "10000 steps"
    config.evaluate_sets_every = "5%"
    config.checkpoint_every = "25%"

    config.model.name = "players"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.99
    for player in ("generator", "discriminator"):
        config.optimizer.groups[player] = default.group(f"{player}/")

    config.averages = ml_collections.ConfigDict()
    for share in ("01", "05", "20"):
        config.averages[f"ema{share}"] = default.average("ema", half_life=f"{int(share)}%")
    config.averages.mean = default.average("running_mean")
    return config
