"""CIFAR-10 with 4,000 labels, as in the paper of mean teacher, but with a wide residual network.

    python main.py --config=examples/mean_teacher/configs/cifar10_4000.py --workdir=runs/teacher4000

Results: not measured; it needs an accelerator. The length is that of no publication.
"""

import ml_collections

from configs import default as project
from examples.mean_teacher.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "cifar10"
    config.batch_size = 256
    config.duration = "100000 steps"
    config.eval_every = "2%"
    config.checkpoint_every = "2%"
    config.data.labels_per_class = 400
    config.data.labelled_share = 0.25

    config.augment.flip = True
    config.augment.crop_padding = 4
    config.augment.cutout = 16
    config.model.name = "wide_resnet"
    config.model.depth = 28
    config.model.width = 2

    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-3
    config.optimizer.schedule = "cosine"

    config.averages.teacher = project.average("ema", decay=0.999)
    return config
