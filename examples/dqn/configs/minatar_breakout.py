"""Breakout of MinAtar (Young & Tian 2019) on a GPU: 5 million actions, through gymnax, an optional package.

    pip install -c constraints.txt 'gymnax>=1,<2'
    python main.py --config=examples/dqn/configs/minatar_breakout.py --workdir=runs/breakout

Results: not measured; it needs an accelerator.
"""

import ml_collections

from configs import default as project
from examples.dqn.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = config.data.environment = "Breakout-MinAtar"
    config.duration = "160000 steps"
    config.eval_every = "2%"
    config.checkpoint_every = "10%"
    config.data.environments = 32
    config.data.buffer_size = 100_000
    config.data.warmup = 5_000
    config.data.exploration = "10%"
    config.model.convolutions = (16,)
    config.model.hidden_sizes = (128,)
    config.optimizer.learning_rate = 2.5e-4
    config.averages.target = project.average("hard_update", period="200 steps")
    return config
