"""MNIST with two power-function averages and 16 snapshots: averages of any length, after training.

python main.py --config=configs/mnist_posthoc.py --workdir=runs/mnist_posthoc
python -m tools.posthoc runs/mnist_posthoc --average=ema:half_life=5% --basis=narrow --basis=wide
"""

import ml_collections

from configs import default, mnist


def get_config() -> ml_collections.ConfigDict:
    config = mnist.get_config()
    config.snapshot_every = "6.25%"
    config.averages.narrow = default.average("power_ema", width=0.05)
    config.averages.wide = default.average("power_ema", width=0.10)
    return config
