"""CIFAR-100 with ResNet-18: the recipe of configs/cifar10.py.

    python main.py --config=configs/cifar100.py --workdir=runs/cifar100

Results: not measured; it needs an accelerator, as configs/cifar10.py does.
"""

import ml_collections

from configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    config = cifar10.get_config()
    config.dataset = "cifar100"
    return config
