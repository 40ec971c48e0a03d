"""CIFAR-10 with ResNet-18: the usual recipe of the literature.

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10

SGD with Nesterov momentum, batches of 128, flips and padded crops, weight decay, a learning rate that falls along a
cosine after a warm-up. Where the rate falls to zero, averaging may add little at the end (see configs/digits.py);
`--config.optimizer.schedule=constant` shows averaging in place of annealing.

Results: not measured; it needs an accelerator (78,125 steps of about 0.4 TFLOP).
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "cifar10"
    config.batch_size = 128
    config.duration = "200 epochs"
    config.log_every = "100 steps"
    config.eval_every = "2 epochs"
    config.checkpoint_every = "5 epochs"

    config.augment.flip = True
    config.augment.crop_padding = 4

    config.model.name = "resnet"
    config.model.depth = 18

    config.optimizer.learning_rate = 0.1
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-3  # ten times the 5e-4 of the literature, which momentum 0.9 adds up
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "2%"

    config.averages.ema = default.average("ema", half_life="1%")
    return config
