"""MNIST at its own 28x28, with a small UNet.

    python main.py --config=examples/diffusion/configs/mnist28.py --workdir=runs/mnist28

Results: not measured; it needs an accelerator.
"""

import ml_collections

from examples.diffusion.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.size = 28
    config.batch_size = 128
    config.duration = "50000 steps"
    config.model.convolutional = True
    config.model.features = 32
    config.model.blocks = 2
    config.optimizer.learning_rate = 3e-4
    return config
