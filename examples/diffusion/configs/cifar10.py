"""CIFAR-10 with a UNet of three resolutions.

    python main.py --config=examples/diffusion/configs/cifar10.py --workdir=runs/cifar10_diffusion

Results: not measured; it needs an accelerator.
"""

import ml_collections

from examples.diffusion.configs import mnist28


def get_config() -> ml_collections.ConfigDict:
    config = mnist28.get_config()
    config.dataset = "cifar10"
    config.data.size = 32
    config.data.num_samples = 10_000
    config.duration = "200000 steps"
    config.augment.flip = True
    config.model.features = 96
    config.model.blocks = 3
    return config
