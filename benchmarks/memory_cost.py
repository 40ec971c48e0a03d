"""What does it cost a step to carry a memory, such as a buffer for replay?

    python -m benchmarks.memory_cost

Times steps of configs/digits_noise.py, and the same with 32 MB that the training data carry along and write a few
values into at each step. They take turns. Whether a step is rejected is looked at in both, as always.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from flax import struct
from ml_collections import config_flags

from benchmarks import measure
from input_pipeline import TrainData
from runtime.errors import UserError
from tools import command_line, finished
from train_state import CustomTrainState

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits_noise.py", "File with the config.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "How often the two take turns.", lower_bound=measure.MIN_ROUNDS)
_STEPS = flags.DEFINE_integer("steps", 1000, "Steps of a turn.")
_MEGABYTES = flags.DEFINE_integer("megabytes", 32, "Size of the memory.")
WRITTEN = 10  # values at each step


class WithMemory(struct.PyTreeNode):
    """Training data with a buffer, of which each step overwrites some values."""

    data: TrainData

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """The batch without the memory, and the memory with the first labels of the batch in the next places."""
        batch, _ = self.data.batch(state)
        places = (state.step * WRITTEN + jnp.arange(WRITTEN)) % len(state.memory)
        return batch, state.memory.at[places].set(batch["label"][:WRITTEN].astype(jnp.float32))


def main(argv: list[str]) -> None:
    """Times both and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        plain = finished.create_experiment(_CONFIG.value)
    except UserError as error:
        sys.exit(f"error: {error}")
    memory = jnp.zeros(_MEGABYTES.value * 2**20 // 4, device=plain.state.step.sharding)
    state = jax.tree.map(jnp.copy, plain.state).replace(memory=memory)
    carrying = dataclasses.replace(plain, state=state, train_data=WithMemory(plain.train_data))
    takes = {"no memory": measure.create_training(plain), f"{_MEGABYTES.value} MB": measure.create_training(carrying)}
    losses = [take(_STEPS.value)[1] for take in takes.values()]
    assert losses[0] == losses[1], "the memory changes what is computed"

    def steps_of(take: Callable[[int], Any]) -> Callable[[], None]:
        def turn() -> None:
            take(_STEPS.value)

        return turn

    seconds = measure.interleaved({name: steps_of(take) for name, take in takes.items()}, _ROUNDS.value)
    rows = []
    for name, values in seconds.items():
        row, ratio = measure.summary(values), measure.paired_ratio(values, seconds["no memory"])
        rows.append({"memory": name, "us_per_step": 1e6 * row.pop("median") / _STEPS.value, **row, **ratio})
    measure.write(pathlib.Path(__file__).stem, rows, seconds=seconds, steps=_STEPS.value)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
