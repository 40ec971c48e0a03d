"""CIFAR-10 with ResNet-18 and the networks of BYOL on it.

    python main.py --config=examples/byol/configs/cifar10_resnet18.py --workdir=runs/cifar10_byol

Results: not measured; it needs an accelerator.
"""

import ml_collections

from configs import default as project
from examples.byol.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "cifar10"
    config.data.size = 32
    config.duration = "200 epochs"
    config.evaluate_sets_every = "5%"
    config.checkpoint_every = "5%"

    config.loss.min_area = 0.2
    config.loss.jitter = 0.4
    config.loss.flip = True

    config.model.resnet = 18
    config.model.hidden = 4096
    config.model.outputs = 256

    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.1
    config.averages.target = project.average("cosine_update", tau=0.004)
    return config
