"""The training loop and its step. Read `loss_fn`, `train_step` and `train_and_evaluate` first."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn

import evaluation
import input_pipeline
import models
import optimizers
import settings
from runtime import interruption, nonfinite, run_folder, sharding
from runtime.checkpointing import Checkpoints, find_origin
from runtime.convolution import FastApply
from runtime.dispatch import Dispatcher, Program, Sums, counted_if, next_batch, noted, suits_chunks, zero_sums
from runtime.metric_writing import MetricWriter
from streams import stream_key
from train_state import Average, CustomTrainState

Batch = Mapping[str, jax.Array]
Keep = pathlib.Path | None  # folder for what the last evaluation took each example for
# (params, state, batch) -> objective, (metrics, updates); see `loss_fn`
LossFn = Callable[[Any, CustomTrainState, Batch], tuple[jax.Array, tuple[Sums, dict[str, Any]]]]


def loss_fn(
    params: Any, state: CustomTrainState, batch: Batch, *, label_smoothing: float = 0.0, l2_penalty: float = 0.0
) -> tuple[jax.Array, tuple[Sums, dict[str, Any]]]:
    """Cross-entropy with smoothed labels plus an L2 penalty.

    Args:
        params: the parameters to differentiate by.
        state: everything else, including the averages, for objectives that involve them.
        batch: `image` [batch, height, width, channels], `label` [batch] and `target` [batch, classes], the
            class probabilities to learn: those of the label, unless augmentation mixes several.
        label_smoothing: share of the label's weight that is spread over all classes (Szegedy et al. 2016).
        l2_penalty: factor of half the sum of squares of all kernels.

    Returns:
        The objective, a scalar; metrics, each a (sum, count), which add up over steps; and fields of the state to
        replace, here the new batch statistics.
    """
    logits, updates = apply_model(params, state, batch)
    target = optax.smooth_labels(batch["target"], label_smoothing)
    objective = optax.softmax_cross_entropy(logits, target).mean()
    if l2_penalty:
        objective += 0.5 * l2_penalty * sum(jnp.sum(jnp.square(kernel)) for kernel in optimizers.kernels(params))
    label = evaluation.classes(batch)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    correct = jnp.argmax(logits, axis=-1) == label
    metrics = {"loss": (nll.sum(), nll.size), "accuracy": (correct.sum(), correct.size)}
    return objective, (metrics, updates)


def apply_model(params: Any, state: CustomTrainState, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    """The model's outputs [batch, outputs] in training, and `batch_stats` to replace if the model has any."""
    return state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats},
        batch["image"],
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": state.step_key("dropout")},
    )


@dataclasses.dataclass(frozen=True)
class Task:
    """What is minimized, on what, and what is scored. The defaults are the classification of images.

    Attributes:
        loss_fn: the objective. Its keyword arguments with a default are fields of `config.loss`: those whose default is
            a duration ("20%") arrive in steps, and it gets the length of training if it has a `num_steps`.
        score_fn: the scores of each evaluated example, each of them a metric; None if there is only `evaluate`.
        metrics: which direction is better for each metric that is to be judged and drawn; the first is the default of
            `config.best_metric`.
        evaluate: metrics of a set as a whole, such as a return; takes the experiment, the weights by name and the
            split, every `config.evaluate_sets_every`; returns `Sets` of runtime/score_metrics.py.
        create_model: takes `Data.example` and the fields of `config.model` in its signature.
        create_data: takes the resolved config, the devices and, as its keywords with a default, fields of
            `config.data`; durations as in `loss_fn`.
        num_train: takes the config; the number of training examples in an epoch, None if there are no epochs.
        needs: takes `config.loss`; the names of the averages that the loss uses, which a run cannot do without.
    """

    loss_fn: Callable[..., Any] = loss_fn
    score_fn: evaluation.ScoreFn | None = evaluation.score_fn
    metrics: Mapping[str, Literal["higher", "lower"]] = dataclasses.field(
        default_factory=lambda: {"accuracy": "higher", "loss": "lower"}
    )
    evaluate: Callable[["Experiment", dict[str, Any], str], evaluation.Sets] | None = None
    create_model: Callable[..., nn.Module] = models.create_classifier
    create_data: Callable[..., input_pipeline.Data] = input_pipeline.create_data
    num_train: Callable[[Mapping[str, Any]], int | None] = input_pipeline.count_train
    needs: Callable[[Mapping[str, Any]], Collection[str]] = lambda loss: ()

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ValueError("Task.metrics is empty; the first of them picks the best checkpoint")
        if wrong := {name: way for name, way in self.metrics.items() if way not in ("higher", "lower")}:
            raise ValueError(f"Task.metrics: {wrong}; each must be 'higher' or 'lower', whichever is better")
        if not (self.score_fn or self.evaluate):
            raise ValueError("Task: it needs a score_fn or an evaluate, or nothing would be reported")


# A new task is a function or two above and its name here.
TASKS: dict[str, Task] = {
    "classification": Task(),
}


def find_task(name: str) -> Task:
    """The task that `config.task` names, of `TASKS` or as `examples.NAME.train`, or a UserError."""
    return settings.find_task(name, TASKS, Task)


def compute_gradients(
    state: CustomTrainState, batch: Batch, loss_fn: LossFn, num_microbatches: int
) -> tuple[jax.Array, Sums, dict[str, Any], Any]:
    """Objective, metrics, fields of the state to replace, and gradients (like the parameters) of a batch.

    Args:
        state: before the step.
        batch: arrays [batch, ...] that `loss_fn` understands.
        loss_fn: the objective.
        num_microbatches: number of equal parts that are computed one after another, in the memory of one. Without batch
            norm and dropout the result is that of the whole batch, up to rounding.
    """
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if num_microbatches == 1:
        (objective, (metrics, updates)), grads = gradient_fn(state.params, state, batch)
        return objective, metrics, updates, grads

    # Every n-th example, not blocks of them: so each device has an equal share of each microbatch already.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, num_microbatches, *x.shape[1:]), 0, 1), batch)
    # Only to learn which fields the loss replaces: each microbatch starts from those that the one before has left.
    _, (_, replaced) = jax.eval_shape(loss_fn, state.params, state, jax.tree.map(lambda x: x[0], parts))

    def accumulate(carry: Any, microbatch: tuple[jax.Array, Batch]) -> tuple[Any, tuple[jax.Array, Sums]]:
        (updates, total), (index, part) = carry, microbatch
        part_state = state.replace(**updates, rng=jax.random.fold_in(state.rng, index))
        (objective, (metrics, updates)), grads = gradient_fn(state.params, part_state, part)
        return (updates, jax.tree.map(jnp.add, total, grads)), (objective, metrics)

    start = {name: getattr(state, name) for name in replaced}, jax.tree.map(jnp.zeros_like, state.params)
    (updates, total), (objectives, sums) = jax.lax.scan(accumulate, start, (jnp.arange(num_microbatches), parts))
    metrics = jax.tree.map(lambda values: values.sum(axis=0), sums)
    grads = jax.tree.map(lambda g: g / num_microbatches, total)
    return objectives.mean(), metrics, updates, grads


@functools.partial(jax.jit, static_argnames=("loss_fn", "num_microbatches", "reject", "mesh"))
def train_step(
    state: CustomTrainState,
    batch: Batch,
    loss_fn: LossFn,
    num_microbatches: int = 1,
    reject: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[CustomTrainState, Sums]:
    """One step: gradients, the optimizer's update, then the averages' update, which sees the new parameters.

    Args:
        state: before the step.
        batch: arrays [batch, ...] that `loss_fn` understands.
        loss_fn: the objective.
        num_microbatches: see `compute_gradients`. Optimizer and averages move once, whatever it is.
        reject: whether to reject a step with a non-finite objective or gradient; see `CustomTrainState.accept_if`.
        mesh: the devices, if there are several.

    Returns:
        The state after the step and its metrics, each (sum, count); those of a rejected step are (0, 0).
    """
    objective, metrics, updates, grads = compute_gradients(state, batch, loss_fn, num_microbatches)
    grad_norm = optax.tree.norm(grads)
    candidate = state.apply_gradients(grads=grads, **updates)
    ok = jnp.isfinite(objective) & jnp.isfinite(grad_norm) if reject else jnp.bool_(True)
    log = {"objective": objective, "grad_norm": grad_norm, **optimizers.logged(candidate.opt_state)}
    metrics = counted_if(ok, metrics, log)
    accepted = sharding.with_whole_params(state.accept_if(ok, candidate), mesh)
    return accepted.apply_ema(moved=ok), metrics


def create_train_program(loss_fn: LossFn, mesh: jax.sharding.Mesh, num_microbatches: int = 1) -> Program:
    """The program that gets the batch of the state's step from the training data and takes `train_step`."""
    # --debug_nans looks for NaNs in what a program returns, and rejecting a step would hide them.
    reject = not jax.config.jax_debug_nans  # type: ignore[attr-defined]  # made at run time

    def program(state: CustomTrainState, data: Any) -> tuple[CustomTrainState, Sums]:
        batch, memory = next_batch(data, state)
        batch = jax.lax.with_sharding_constraint(batch, sharding.split_batch(mesh))
        # Before the step, so that a rejected one keeps what was seen, and nothing is selected among two memories.
        return train_step(state.replace(memory=memory), batch, loss_fn, num_microbatches, reject, mesh)

    return program


def create_train_state(
    rng: jax.Array, model: nn.Module, tx: Any, averages: tuple[Average, ...], example: tuple[Any, Any]
) -> CustomTrainState:
    """The state at step 0.

    Args:
        rng: typed root key of the run.
        model: maps inputs to outputs.
        tx: the optimizer.
        averages: the weight averages to keep.
        example: an input and its target; see `input_pipeline.Data`.
    """
    variables = model.init(stream_key(rng, "params"), example[0], train=False)
    return CustomTrainState.create(apply_fn=FastApply(model), tx=tx, rng=rng, averages=averages, **variables)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A resolved config with everything on the devices that training and evaluation need."""

    config: ml_collections.FrozenConfigDict
    task: Task
    mesh: jax.sharding.Mesh
    state: CustomTrainState  # at step 0
    sums: Sums  # over no steps
    train_data: Any  # see `input_pipeline.Data`
    eval_data: Mapping[str, Any]  # "test", preceded by "validation" if examples were set aside
    loss_fn: LossFn  # with its fields of `config.loss`
    train_program: Program
    eval_step: evaluation.EvalStep | None  # None if there is no `score_fn`
    workdir: pathlib.Path | None  # of the run, where a task may keep files; None outside of one


def create_experiment(config: ml_collections.FrozenConfigDict, task: Task, workdir: Keep = None) -> Experiment:
    """Creates the state and reads the data, all on the devices. Takes what `settings.prepare` returns.

    Raises:
        UserError: model, averages and data set do not fit each other, or the data set is damaged.
    """
    mesh = sharding.create_mesh()
    train_data, eval_data, example, memory = settings.create_data(task, config, mesh)
    model = settings.create_model(task, config, example)
    tx = optimizers.create_optimizer(**config.optimizer)
    averages = settings.create_averages(config)
    init = functools.partial(create_train_state, model=model, tx=tx, averages=averages, example=example)
    state = sharding.create(init, jax.random.key(config.seed), mesh, task.needs(config.loss)).replace(memory=memory)
    settings.check_state(state, config.optimizer.groups)
    loss_fn = settings.with_fields(task.loss_fn, config)
    program = create_train_program(loss_fn, mesh, config.accumulate)
    with noted(config, has_own_model=settings.has_own_model(task)):
        sums = zero_sums(program, state, train_data)
        config = settings.completed(config, chunked=suits_chunks(program, state, train_data, config.chunked))
        eval_step, proportions = evaluation.create_eval_step(state, task, eval_data["test"], mesh)
    config = settings.completed(config, proportions=proportions)
    return Experiment(config, task, mesh, state, sums, train_data, eval_data, loss_fn, program, eval_step, workdir)


def evaluate(
    experiment: Experiment, state: CustomTrainState, splits: Iterable[str], *, sets: bool = True, keep: Keep = None
) -> dict[str, evaluation.Metrics]:
    """Scores raw and averaged weights on some splits; see `evaluate_weights`."""
    num_batches = experiment.config.recompute_batches
    weights = evaluation.weights_to_score(state, experiment.train_data, num_batches, experiment.mesh)
    return {split: evaluate_weights(experiment, weights, split, sets=sets, keep=keep) for split in splits}


def evaluate_weights(
    experiment: Experiment, weights: dict[str, Any], split: str, *, sets: bool = True, keep: Keep = None
) -> evaluation.Metrics:
    """Metrics of several sets of weights by name; the task's `evaluate` only if `sets`; see `evaluation.evaluate`."""
    task = experiment.task
    found = task.evaluate(experiment, weights, split) if task.evaluate and sets else None
    wanted = task.metrics if sets else ()
    return evaluation.evaluate(weights, experiment.eval_data[split], experiment.eval_step, found, wanted, keep)


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, *, config_change: str = "refuse"
) -> tuple[CustomTrainState, evaluation.Metrics]:
    """Trains, and evaluates raw and averaged weights as it goes. Continues the run that `workdir` holds, if any.

    Args:
        config: see configs/default.py.
        workdir: folder of the run; created if it does not exist.
        config_change: "accept" continues a run although the config differs from the one it was started with.

    Returns:
        The state at the end, and the metrics of the last evaluation; see `evaluation.evaluate`.

    Raises:
        UserError: a config, data set or workdir that cannot be used, or too many rejected steps in a row.
    """
    started, workdir = time.monotonic(), run_folder.locate(workdir)
    task = find_task(config.task)
    experiment = create_experiment(settings.prepare(config, task, workdir, config_change), task, workdir)
    config, program, train_data = experiment.config, experiment.train_program, experiment.train_data
    origin = find_origin(workdir, config, experiment.state)
    gradient_fn = functools.partial(compute_gradients, loss_fn=experiment.loss_fn, num_microbatches=config.accumulate)
    with contextlib.ExitStack() as stack:
        data = {"training": train_data, **experiment.eval_data}
        folder = stack.enter_context(run_folder.enter(workdir, config, data, config_change))
        checkpoints = stack.enter_context(Checkpoints(workdir, config.keep_checkpoints, experiment.state))
        step, best = checkpoints.record.step, checkpoints.record.best
        writer = stack.enter_context(
            MetricWriter(folder, config.duration, checkpoints.record.writer, config.best_metric, config.proportions)
        )
        checkpoints.discard_newer()
        state, sums = checkpoints.restore_or_initialize(experiment.state, experiment.sums, origin)
        run_folder.describe(folder, config, state)
        if not checkpoints.latest:
            checkpoints.save(state, sums, best, writer.record())
        advance = stack.enter_context(
            Dispatcher(program, config.chunked, config.steps_per_dispatch, config.profile, folder, writer.progress.at)
        )
        writer.add_startup(started)

        # An iteration trains up to the next step at which something is due, then logs, evaluates and saves, in this
        # order: so a checkpoint knows of everything written up to its step, and a run that continues from it repeats
        # nothing and loses nothing.
        while step < config.duration:
            with writer.clock("train_seconds"):
                state, sums, step = advance(state, sums, train_data, step, settings.next_due_step(config, step))
            rejected = nonfinite.check_rejections(state, config.max_rejected_steps, train_data, gradient_fn)

            if settings.is_due(config, "log_every", step):
                writer.write_means(step, sums, rejected_steps=rejected)
                sums = jax.tree.map(jnp.zeros_like, sums)
            sets, last = settings.is_due(config, "evaluate_sets_every", step), step == config.duration
            if sets or settings.is_due(config, "eval_every", step):
                # The first split gives the curves. Where that is "validation", "test" is scored once, at the end.
                splits = [*experiment.eval_data][: None if last else 1]
                with writer.clock("eval_seconds"):
                    scores = evaluate(experiment, state, splits, sets=sets, keep=folder if last else None)
                writer.write_scores(step, scores)
                best = evaluation.better(
                    best, step, scores[splits[0]], config.best_curve, config.best_metric, task.metrics
                )
            if settings.is_due(config, "snapshot_every", step):
                checkpoints.save_snapshot(state)
            writer.write_progress(step)
            stop = interruption.requested()
            if stop or settings.is_due(config, "checkpoint_every", step) or (best and best.step == step):
                with writer.clock("checkpoint_seconds"):
                    checkpoints.save(state, sums, best, writer.record())
            if stop:
                raise interruption.Interrupted(step)

    writer.say_times()
    return state, writer.scores
