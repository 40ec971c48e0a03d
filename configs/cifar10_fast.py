"""CIFAR-10 in few operations: a small network, large batches, Muon, and a rate that falls along a line.

    python main.py --config=configs/cifar10_fast.py --workdir=runs/cifar10_fast

After Jordan 2024 (arXiv:2404.00498), whose networks reach 94 % in about as many operations, 3e14.

Results: not measured; it needs an accelerator.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "cifar10"
    config.batch_size = 1000
    config.eval_batch_size = 2000
    config.duration = "10 epochs"
    config.log_every = "20%"
    config.eval_every = "50%"
    config.checkpoint_every = "100%"

    config.augment.flip = True
    config.augment.crop_padding = 2

    config.model.name = "fast_cnn"
    config.model.mirror = True
    config.model.dtype = "bfloat16"
    config.loss.label_smoothing = 0.2

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.03
    config.optimizer.momentum = 0.6
    config.optimizer.nesterov = True
    config.optimizer.schedule = "wsd"
    config.optimizer.decay = "100%"

    config.averages.ema = default.average("ema", half_life="2%")
    return config
