"""MNIST with ten labels of each class, for two CPU cores.

python main.py --config=examples/mean_teacher/configs/default.py --workdir=runs/teacher
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.task = "examples.mean_teacher.train"
    config.dataset = "mnist"
    config.batch_size = 100
    config.duration = "1500 steps"
    config.checkpoint_every = "50%"

    config.augment.crop_padding = 2
    config.augment.cutout = 8
    config.model.name = "small_cnn"

    config.optimizer.learning_rate = 0.02
    config.optimizer.nesterov = True

    config.averages = ml_collections.ConfigDict()
    config.averages.teacher = default.average("ema", half_life="5%")
    return config
