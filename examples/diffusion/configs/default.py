"""MNIST shrunk to 14x14, for two CPU cores: 8,000 steps of 256 at a constant learning rate, and five averages of them.

python main.py --config=examples/diffusion/configs/default.py --workdir=runs/diffusion
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.task = "examples.diffusion.train"
    config.dataset = "mnist"
    config.batch_size = 256
    config.duration = "8000 steps"
    config.eval_every = "25%"
    config.checkpoint_every = "25%"
    config.snapshot_every = "6.25%"

    config.model.name = "velocity"
    config.model.features = 256
    config.model.blocks = 3

    config.optimizer.name = "adamw"  # without weight decay, Adam
    config.optimizer.learning_rate = 3e-3

    config.averages = ml_collections.ConfigDict()
    for share in ("01", "05", "20"):
        config.averages[f"ema{share}"] = default.average("ema", half_life=f"{int(share)}%")
    config.averages.uncorrected = default.average("ema", decay=0.9999, debias=False)
    # From these two, tools.posthoc makes averages of other lengths after training, as EDM2 does (Karras et al. 2024).
    config.averages.power05 = default.average("power_ema", width=0.05)
    config.averages.power10 = default.average("power_ema", width=0.10)
    return config
