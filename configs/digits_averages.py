"""Nine averages of one training of configs/digits.py: which of them help, and where they fail.

python main.py --config=configs/digits_averages.py --workdir=runs/digits_averages
"""

import ml_collections

from configs import default, digits


def get_config() -> ml_collections.ConfigDict:
    config = digits.get_config()
    config.eval_every = "100%"
    config.checkpoint_every = "100%"

    config.averages.short = default.average("ema", half_life="1%")
    config.averages.ema = default.average("ema", half_life="5%")
    config.averages.long = default.average("ema", half_life="20%")
    config.averages.power = default.average("power_ema", width=0.1)
    config.averages.tail = default.average("running_mean", start="75%")
    config.averages.late = default.average("running_mean", start="99%")
    config.averages.mean = default.average("running_mean")
    config.averages.corrected = default.average("ema", decay=0.999)
    config.averages.uncorrected = default.average("ema", decay=0.999, debias=False)
    return config
