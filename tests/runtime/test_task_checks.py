"""Tasks of one's own: what is found under a name, and what their functions may return."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from flax import linen as nn

from input_pipeline import Data
from runtime import dispatch, task_checks
from runtime.errors import UserError

WITH_BATCH = SimpleNamespace(batch=lambda state: ({"x": jnp.zeros(8)}, state.memory))
DATA = Data(WITH_BATCH, {"test": None}, (jnp.zeros(1), jnp.zeros(1)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": WITH_BATCH}, r"create_data returns a dict; expected input_pipeline.Data\(...\)"),
        (DATA._replace(train={"x": jnp.zeros(3)}), r"train data of type dict; they need a batch\(state\)"),
        (DATA._replace(eval={"dev": 1}), r"evaluation data of \['dev'\]; expected a dict of 'test', or of both"),
        (DATA._replace(eval={"test": 1, "validation": 1}), r"data of \['test', 'validation'\]; expected"),
        (DATA._replace(eval=jnp.zeros(3)), r"evaluation data of .*; expected a dict of 'test'"),
        (DATA._replace(example=jnp.zeros(3)), r"returns the example float32\[3\]; expected \(input, target\)"),
    ],
)
def test_data_that_the_loop_cannot_use_are_refused(data, message):
    with pytest.raises(UserError, match=message):
        task_checks.check_data(data)
    task_checks.check_data(DATA)
    task_checks.check_data(DATA._replace(eval={"validation": None, "test": None}))


def test_a_model_is_one_of_linen():
    with pytest.raises(UserError, match="create_model returns a function; expected a linen module"):
        task_checks.check_model(lambda x: x)
    task_checks.check_model(nn.Dense(1))


def test_a_batch_comes_with_a_memory_as_large_as_before():
    state = SimpleNamespace(memory={"total": jnp.int32(0)})
    assert dispatch.next_batch(WITH_BATCH, state)[1] == state.memory
    alone = SimpleNamespace(batch=lambda state: {"x": jnp.zeros(8)})
    with pytest.raises(UserError, match=r"batch\(state\) returns \{'x': 'float32\[8\]'\}; expected \(batch, memory\)"):
        dispatch.next_batch(alone, state)
    other = SimpleNamespace(batch=lambda state: ({}, {"total": state.memory["total"] + 0.5}))
    with pytest.raises(UserError, match=r"memory \{'total': 'float32\[\]'\}; expected it as it was before: .*int32"):
        dispatch.next_batch(other, state)


@pytest.mark.parametrize("names", ["ema", None, 3])
def test_averages_are_needed_by_their_names(names):
    with pytest.raises(UserError, match=rf"needs of the task returns {names!r}; expected names of averages, such as"):
        task_checks.needed(SimpleNamespace(needs=lambda loss: names), {})


@pytest.mark.parametrize("number", [0, -1, 1e3, "10"])
def test_the_number_of_training_examples_is_one(number):
    task = SimpleNamespace(num_train=lambda config: number)
    with pytest.raises(UserError, match=rf"num_train of the task returns {number!r}; expected a number of examples"):
        task_checks.count_train(task, {}, has_own_data=True)
