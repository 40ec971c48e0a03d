"""CIFAR-10 with ResNet-20 for one epoch: where should an average's batch statistics come from?

    python main.py --config=configs/cifar10_batch_stats.py --workdir=runs/batch_stats

Six averages of one run: a short and a long horizon, each with its batch statistics averaged like the weights, copied
from the raw ones, and recomputed from 50 training batches.
"""

import ml_collections

from configs import cifar10_small, default


def get_config() -> ml_collections.ConfigDict:
    config = cifar10_small.get_config()
    config.duration = "1 epochs"
    config.eval_every = "50%"
    config.checkpoint_every = "100%"

    config.averages.ema.kind = "none"
    for name, half_life in (("short", "2%"), ("long", "20%")):
        for batch_stats in ("average", "copy", "recompute"):
            config.averages[f"{name}_{batch_stats}"] = default.average(
                "ema", half_life=half_life, batch_stats=batch_stats
            )
    return config
