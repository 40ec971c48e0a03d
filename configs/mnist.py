"""MNIST with the convolutional network of the Flax example.

python main.py --config=configs/mnist.py --workdir=runs/mnist
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "mnist"
    config.batch_size = 128
    config.duration = "6 epochs"
    config.log_every = "100 steps"
    config.eval_every = "1 epochs"
    config.checkpoint_every = "1 epochs"

    config.model.name = "cnn"
    config.model.dropout = 0.25

    config.optimizer.learning_rate = 0.05
    config.optimizer.momentum = 0.9

    config.averages.ema = default.ema(half_life="5%")
    return config
