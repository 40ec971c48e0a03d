"""CIFAR-10 with convolutions in both players, after DCGAN (Radford et al. 2016), but without batch norm.

    python main.py --config=examples/gan/configs/dcgan.py --workdir=runs/dcgan

Results: not measured; it needs an accelerator.
"""

import ml_collections

from examples.gan.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "cifar10"
    config.data.size = 32
    config.duration = "100000 steps"
    config.model.convolutional = True
    config.model.latents = 128
    config.model.features = 64
    config.optimizer.learning_rate = 2e-4
    return config
