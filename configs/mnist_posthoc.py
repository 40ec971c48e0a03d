"""MNIST with two power-function averages and 16 snapshots: averages of other lengths, made after training.

    python main.py --config=configs/mnist_posthoc.py --workdir=runs/mnist_posthoc
    python -m tools.posthoc runs/mnist_posthoc --average=ema:half_life=5% --basis=narrow --basis=wide

Test accuracy of the EMA of configs/mnist.py in 3 seeds (benchmarks/results/mnist_posthoc.json):

    tracked in training             99.44  99.43  99.36 %
    made of `narrow` and `wide`     99.44  99.43  99.36 %; its kernel is off by 0.15 %
    raw weights                     99.13  99.06  99.28 %

Training takes 200 to 230 s on two cores of an AMD EPYC, the second command a minute.
"""

import ml_collections

from configs import default, mnist


def get_config() -> ml_collections.ConfigDict:
    config = mnist.get_config()
    config.snapshot_every = "6.25%"
    config.averages.narrow = default.average("power_ema", width=0.05)
    config.averages.wide = default.average("power_ema", width=0.10)
    return config
