"""Checks of what the functions of a task return, where it is first seen. Those of the step are in dispatch.py."""

from collections.abc import Collection, Mapping
from typing import Any

from runtime.errors import UserError
from runtime.stream import Stream
from runtime.trees import shapes


def needed(task: Any, loss: Mapping[str, Any]) -> Collection[str]:
    """The names of the averages that the loss of a task uses, with these fields of `config.loss`."""
    names = task.needs(loss)
    if isinstance(names, str) or not isinstance(names, Collection):
        raise UserError(f"needs of the task returns {names!r}; expected names of averages, such as ('ema',)")
    return names


def count_train(task: Any, config: Mapping[str, Any], has_own_data: bool) -> int | None:
    """The number of training examples of a task, None if there are no epochs."""
    try:
        number = task.num_train(config)
    except UserError as error:
        if not has_own_data:
            raise
        raise UserError(
            f"{error}\nTask {config['task']!r} has a create_data and looks for the size of `dataset`: give it a "
            "num_train of its own, such as num_train=lambda config: None if its data have no epochs"
        ) from error
    if number is not None and (not isinstance(number, int) or number < 1):
        raise UserError(f"num_train of the task returns {number!r}; expected a number of examples, or None")
    return number


def check_data(data: Any) -> None:
    """Checks what `create_data` returns."""
    if getattr(data, "_fields", None) != ("train", "eval", "example", "memory"):
        raise UserError(f"create_data returns a {type(data).__name__}; expected input_pipeline.Data(...)")
    if not isinstance(data.train, Stream) and not hasattr(data.train, "batch"):
        raise UserError(f"create_data returns train data of type {type(data.train).__name__}; they need a batch(state)")
    splits = [*data.eval] if isinstance(data.eval, Mapping) else type(data.eval).__name__
    if splits not in (["test"], ["validation", "test"]):
        raise UserError(
            f"create_data returns evaluation data of {splits}; expected a dict of 'test', or of both "
            "'validation' and 'test'"
        )
    if not isinstance(data.example, tuple) or len(data.example) != 2:
        raise UserError(f"create_data returns the example {shapes(data.example)}; expected (input, target)")


def check_model(model: Any) -> None:
    """Checks what `create_model` returns."""
    if not (hasattr(model, "init") and hasattr(model, "apply")):
        raise UserError(f"create_model returns a {type(model).__name__}; expected a linen module")
