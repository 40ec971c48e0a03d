"""Handwritten digits of 8x8 pixels with 40 % wrong training labels: what averaging buys at a constant learning rate.

python main.py --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "digits"
    config.label_noise = 0.4
    config.batch_size = 32
    config.duration = "10 epochs"

    config.model.name = "mlp"
    config.model.hidden_sizes = (256, 256)

    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9

    config.averages.ema = default.ema(half_life="5%")
    return config
