"""CartPole as CleanRL's dqn.py has it: 500,000 actions of one environment, 10 between two steps of training.

python main.py --config=examples/dqn/configs/cleanrl.py --workdir=runs/cleanrl
"""

import ml_collections

from configs import default as project
from examples.dqn.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.duration = "49000 steps"
    config.log_every = "1000 steps"
    config.eval_every = "1000 steps"
    config.data.environments = 1
    config.data.acts = 10
    config.data.warmup = 10_000
    config.data.exploration = "24000 steps"  # until 250,000 actions
    config.optimizer.learning_rate = 2.5e-4
    config.averages.target = project.average("hard_update", period="50 steps")
    return config
