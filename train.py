"""The training loop, its step, and the evaluation of raw and averaged weights.

Reading order: `loss_fn`, `train_step`, `train_and_evaluate`; the rest is called from there.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

import evaluation
import input_pipeline
import models
import optimizers
import settings
from augmentation import Augmentation
from reporting import page, runs, tables
from runtime import average_table, checkpointing, environment, interruption, nonfinite, run_folder, startup
from runtime.checkpointing import Checkpoints, Record
from runtime.dispatch import Dispatcher, suits_chunks
from runtime.errors import UserError
from runtime.metric_writing import MetricWriter
from runtime.profiling import Profiler
from runtime.progress import first_time, say, under_way
from streams import stream_key
from train_state import CustomTrainState

Batch = Mapping[str, jax.Array]
# A metric is a sum and the count it is divided by in the end. Sums add up over steps; means would not.
Metrics = dict[str, tuple[ArrayLike, ArrayLike]]
# (params, state, batch) -> objective, (metrics, new batch statistics)
LossFn = Callable[[Any, CustomTrainState, Batch], tuple[jax.Array, tuple[Metrics, Any]]]


def loss_fn(
    params: Any, state: CustomTrainState, batch: Batch, *, label_smoothing: float = 0.0, l2_penalty: float = 0.0
) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """The objective of one batch: cross-entropy with smoothed labels plus an L2 penalty.

    Args:
        params: the parameters to differentiate by.
        state: everything else, the averages too, for objectives that involve them.
        batch: `image` [batch, height, width, channels], `label` [batch] and `target` [batch, classes], the
            class probabilities to learn: those of the label, unless augmentation mixes several.
        label_smoothing: share of the label's weight that is spread over all classes (Szegedy et al. 2016).
        l2_penalty: factor of half the sum of squares of all kernels.

    Returns:
        The objective, a scalar, and (metrics, new batch statistics).
    """
    logits, batch_stats = apply_model(params, state, batch)
    target = optax.smooth_labels(batch["target"], label_smoothing)
    objective = optax.softmax_cross_entropy(logits, target).mean()
    if l2_penalty:
        kernels = jax.tree.map(lambda p, kernel: p if kernel else None, params, optimizers.is_kernel(params))
        objective += 0.5 * l2_penalty * sum(jnp.sum(jnp.square(kernel)) for kernel in jax.tree.leaves(kernels))

    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = jnp.argmax(logits, axis=-1) == batch["label"]
    metrics = {"loss": (nll.sum(), nll.size), "accuracy": (correct.sum(), correct.size)}
    return objective, (metrics, batch_stats)


def apply_model(params: Any, state: CustomTrainState, batch: Batch) -> tuple[jax.Array, Any]:
    """The model's output [batch, outputs] for a training batch, and new batch statistics."""
    outputs, updates = state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats},
        batch["image"],
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": state.step_key("dropout")},
    )
    return outputs, updates.get("batch_stats", {})


# What is minimised and what is scored, by the names of `config.task`. The loss gets the fields of `config.loss` as
# keyword arguments. A new task is two functions and its name here.
TASKS: dict[str, tuple[Callable[..., Any], evaluation.ScoreFn]] = {
    "classification": (loss_fn, evaluation.score_fn),
}


def compute_gradients(
    state: CustomTrainState, batch: Batch, loss_fn: LossFn, num_microbatches: int
) -> tuple[jax.Array, Metrics, Any, Any]:
    """Objective, metrics, new batch statistics and gradients of a batch.

    Args:
        state: before the step.
        batch: what `loss_fn` understands.
        loss_fn: the objective.
        num_microbatches: into how many equal parts to split the batch, which take their turn, so that the memory of one
            suffices. Without batch norm and dropout the result is that of the whole batch, but for rounding.
    """
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if num_microbatches == 1:
        (objective, (metrics, batch_stats)), grads = gradient_fn(state.params, state, batch)
        return objective, metrics, batch_stats, grads

    def accumulate(carry: tuple[Any, Any], microbatch: jax.Array) -> tuple[tuple[Any, Any], tuple[jax.Array, Metrics]]:
        batch_stats, total = carry
        # Every n-th example, not a block of them: so each device has an equal share of each microbatch already.
        part = jax.tree.map(lambda x: x.reshape(-1, num_microbatches, *x.shape[1:])[:, microbatch], batch)
        part_state = state.replace(batch_stats=batch_stats, microbatch=microbatch)
        (objective, (metrics, batch_stats)), grads = gradient_fn(state.params, part_state, part)
        return (batch_stats, jax.tree.map(jnp.add, total, grads)), (objective, metrics)

    start = state.batch_stats, jax.tree.map(jnp.zeros_like, state.params)
    (batch_stats, total), (objectives, parts) = jax.lax.scan(accumulate, start, jnp.arange(num_microbatches))
    metrics = jax.tree.map(lambda values: values.sum(axis=0), parts)
    grads = jax.tree.map(lambda g: g / num_microbatches, total)
    return objectives.mean(), metrics, batch_stats, grads


# Jitted by itself, it is traced once for all that use it.
@functools.partial(jax.jit, static_argnames=("loss_fn", "num_microbatches"))
def train_step(
    state: CustomTrainState, batch: Batch, loss_fn: LossFn, num_microbatches: int = 1
) -> tuple[CustomTrainState, Metrics]:
    """One step: gradients, the optimizer's update, then the averages', which so see the updated parameters.

    Args:
        state: before the step.
        batch: what `loss_fn` understands.
        loss_fn: the objective.
        num_microbatches: see `compute_gradients`; optimizer and averages move once, whatever it is.

    Returns:
        The state after the step and its metrics. A step with a non-finite objective or gradient is rejected: see
        `CustomTrainState.accept_if`; its metrics are all 0 of 0.
    """
    objective, metrics, batch_stats, grads = compute_gradients(state, batch, loss_fn, num_microbatches)
    grad_norm = optax.tree.norm(grads)
    candidate = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    learning_rate = optimizers.learning_rate(candidate.opt_state)
    metrics |= {"objective": (objective, 1), "grad_norm": (grad_norm, 1), "learning_rate": (learning_rate, 1)}

    ok = jnp.isfinite(objective) & jnp.isfinite(grad_norm)
    if jax.config.jax_debug_nans:  # type: ignore[attr-defined]  # made at run time
        # JAX looks for NaNs only in what a program returns, so nothing may hide them.
        ok |= jnp.isnan(objective) | jnp.isnan(grad_norm)
    metrics = {
        name: (jnp.where(ok, total, 0).astype(jnp.float32), jnp.where(ok, count, 0).astype(jnp.int32))
        for name, (total, count) in metrics.items()
    }
    return state.accept_if(ok, candidate).apply_ema(), metrics


def create_train_program(
    loss_fn: LossFn, mesh: jax.sharding.Mesh, num_microbatches: int = 1
) -> Callable[..., tuple[CustomTrainState, Metrics]]:
    """The program of training: make the batch, take a step, add its metrics up.

    Returns:
        A jitted function of (state, sums, data) that gives the next (state, sums).
    """

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def program(
        state: CustomTrainState, sums: Metrics, data: input_pipeline.TrainData
    ) -> tuple[CustomTrainState, Metrics]:
        batch = jax.lax.with_sharding_constraint(data.batch(state.rng, state.step), split_batch(mesh))
        state, metrics = train_step(state, batch, loss_fn, num_microbatches)
        return state, jax.tree.map(jnp.add, sums, metrics)

    return program


def create_mesh() -> jax.sharding.Mesh:
    """All devices in one axis, "data", over which batches are split."""
    # Linen modules work on Auto axes only; make_mesh would make Explicit ones.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of state and data sets: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of batches: an equal part on every device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def create_train_state(
    config: ml_collections.FrozenConfigDict, *, image_shape: tuple[int, ...], num_classes: int, mesh: jax.sharding.Mesh
) -> CustomTrainState:
    """The state at step 0, a function of the resolved config alone.

    Args:
        config: from `settings.resolve`.
        image_shape: (height, width, channels).
        num_classes: of the data set.
        mesh: the devices to put it on.
    """
    model = models.create_model(num_classes=num_classes, **config.model)
    optimizer = config.optimizer.to_dict()
    phases = {name: optimizer.pop(name) for name in ("warmup", "stable", "decay")}
    schedule = optimizers.SCHEDULES[optimizer.pop("schedule")](optimizer.pop("learning_rate"), **phases)
    tx = optimizers.create_optimizer(learning_rate=schedule, **optimizer)
    averages = tuple(settings.create_average(name, average) for name, average in config.averages.items())

    def create(rng: jax.Array) -> CustomTrainState:
        variables = model.init(stream_key(rng, "params"), jnp.zeros((1, *image_shape)), train=False)
        return CustomTrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables.get("batch_stats", {}),
            rng=rng,
            averages=averages,
        )

    # Created by a jitted function with the same shardings as the training program's results, the state lets that
    # program compile once; created otherwise, twice.
    return jax.jit(create, out_shardings=replicated(mesh))(jax.random.key(config.seed))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked config with everything on the devices that training and evaluation need."""

    config: ml_collections.FrozenConfigDict
    mesh: jax.sharding.Mesh
    state: CustomTrainState  # at step 0
    train_data: input_pipeline.TrainData
    eval_data: Mapping[str, input_pipeline.EvalData]  # "test", and "validation" if there is any


def set_up(config: ml_collections.ConfigDict, workdir: str | pathlib.Path, config_change: str) -> Experiment:
    """Everything that an experiment needs, from a config: `check`, `read`, `load`."""
    config, source = check(config, workdir, config_change)
    return load(config, read(config, source))


def check(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, config_change: str
) -> tuple[ml_collections.FrozenConfigDict, input_pipeline.Source]:
    """Checks the config: alone, against the data set, the model and the workdir's run.

    Returns:
        The resolved config and the data set.

    Raises:
        UserError: what is wrong, before anything is read, compiled or written.
    """
    for unused in settings.check(config):
        print(f"Note: {unused}", flush=True)
    if config.task not in TASKS:
        raise UserError(f"task = {config.task!r}: must be one of {', '.join(TASKS)}, or a new one in train.TASKS")
    source = input_pipeline.find_source(config.dataset)
    startup.mark("find data")
    resolved = settings.resolve(config, num_train=source.num_train, num_devices=jax.device_count())
    workdir, accept = pathlib.Path(workdir), config_change == "accept"
    run_folder.check(workdir)
    checkpointing.check_run(workdir)
    if (workdir / "config.json").exists():
        old = settings.read(workdir)
        if resolved.chunked is None:
            resolved = settings.with_chunked(resolved, old.get("chunked"))
        for change in settings.check_same_run(
            settings.to_json(old), settings.to_json(resolved), str(workdir), accept=accept
        ):
            print(f"Differs from the run's config: {change}", flush=True)
    state = abstract_state(resolved, source)
    for average in state.averages:
        # The first updates, and fewer and fewer of the later ones.
        updates = np.unique(np.geomspace(1, resolved.duration, 1000).round().astype(np.int64))
        for update, size in zip(updates, np.broadcast_to(average.schedule(updates), updates.shape), strict=True):
            if not 0 <= size <= 1:
                raise UserError(
                    f"averages.{average.name}: its step size at update {update} is {size:g}; all must be in [0, 1]"
                )
        if average.batch_stats != "average" and not state.batch_stats:
            raise UserError(
                f"averages.{average.name}.batch_stats = {average.batch_stats!r}: the model has no batch statistics; "
                f'leave it at its default, --config.averages.{average.name}.batch_stats="average"'
            )
    return resolved, source


def abstract_state(config: ml_collections.FrozenConfigDict, source: input_pipeline.Source) -> CustomTrainState:
    """What `create_train_state` would make of a resolved config, as shapes and dtypes; compiles nothing."""
    create = functools.partial(create_train_state, config, num_classes=source.num_classes, mesh=create_mesh())
    state: CustomTrainState = jax.eval_shape(functools.partial(create, image_shape=source.image_shape))
    return state


def read(config: ml_collections.FrozenConfigDict, source: input_pipeline.Source) -> input_pipeline.Splits:
    """Reads the images of a resolved config's data set.

    Raises:
        UserError: the data set is damaged, or its labels are not what the loss function takes.
    """
    with under_way(f"Reading {config.dataset}"):
        splits = input_pipeline.load_splits(
            source, num_validation=config.num_validation, label_noise=config.label_noise, seed=config.seed
        )
    if splits.train.label.ndim > 1 and TASKS[config.task][0] is loss_fn:
        raise source.error("its labels are numbers, for which config.task needs a loss of its own in train.TASKS")
    startup.mark("read data")
    return splits


def load(config: ml_collections.FrozenConfigDict, splits: input_pipeline.Splits) -> Experiment:
    """Puts images and a new state on the devices.

    Args:
        config: from `settings.resolve`.
        splits: of its data set.
    """
    mesh = create_mesh()
    image_shape, num_classes = splits.train.image.shape[1:], splits.num_classes
    with first_time("Compiling the initial state"):
        state = create_train_state(config, image_shape=image_shape, num_classes=num_classes, mesh=mesh)
    startup.mark("first state")
    normalization = input_pipeline.Normalization.of(splits.train.image)
    eval_data = {
        name: input_pipeline.EvalData.of(images, normalization, config.eval_batch_size, mesh.size)
        for name, images in (("validation", splits.validation), ("test", splits.test))
        if len(images)
    }
    train = splits.train
    augmentation = Augmentation(**config.augment)
    train_data = input_pipeline.TrainData(
        train.image, train.label, normalization, num_classes, config.batch_size, augmentation
    )
    train_data, eval_data = jax.device_put((train_data, eval_data), replicated(mesh))
    startup.mark("data to device")
    return Experiment(config, mesh, state, train_data, eval_data)


def evaluation_curves(experiment: Experiment, state: CustomTrainState) -> dict[str, dict[str, Any]]:
    """The state's raw and averaged weights, each with the batch statistics that it is to be evaluated with."""
    curves = state.curves()
    for average in state.averages:
        if average.batch_stats == "recompute":
            curves[average.name] = with_recomputed_batch_stats(experiment, curves[average.name], state.rng)
    return curves


def with_recomputed_batch_stats(experiment: Experiment, variables: Mapping[str, Any], rng: jax.Array) -> dict[str, Any]:
    """These weights with batch statistics of their own, from the first `config.recompute_batches` training batches.

    Args:
        experiment: whose images to use.
        variables: parameters and batch statistics.
        rng: root key of the run.
    """
    batch_stats = evaluation.recompute_batch_stats(
        variables,
        experiment.train_data,
        rng,
        batches=range(experiment.config.recompute_batches),
        apply_fn=experiment.state.apply_fn,
        sharding=split_batch(experiment.mesh),
    )
    return {"params": variables["params"], "batch_stats": batch_stats}


def evaluate(
    experiment: Experiment,
    curves: dict[str, dict[str, Any]],
    split: str,
) -> dict[str, dict[str, float]]:
    """Scores weights on the images of a split, "validation" or "test"; see `evaluation.evaluate`."""
    data, apply_fn = experiment.eval_data[split], experiment.state.apply_fn
    _, score_fn = TASKS[experiment.config.task]
    with first_time("Compiling the evaluation, and the first one"):
        return evaluation.evaluate(
            curves, data, apply_fn=apply_fn, score_fn=score_fn, sharding=split_batch(experiment.mesh)
        )


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    config_change: str = "refuse",
) -> CustomTrainState:
    """Trains, and evaluates raw and averaged weights as it goes. Continues the run that `workdir` holds, if any.

    Args:
        config: see configs/default.py.
        workdir: folder of the run; created if it does not exist.
        config_change: "accept" continues a run although the config differs from the one it was started with.

    Returns:
        The state at the end.

    Raises:
        UserError: a config, data set or workdir that cannot be used, or too many rejected steps in a row.
    """
    started, workdir = startup.begin(), pathlib.Path(workdir)
    config, source = check(config, workdir, config_change)
    like, origin = abstract_state(config, source), None
    if config.init_from and not checkpointing.has_checkpoints(workdir):
        origin = checkpointing.find_weights(config.init_from, config.init_weights, like)
    splits = read(config, source)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_folder.hold(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir, config.keep_checkpoints))
        latest = checkpoints.latest
        if latest:
            latest.check_fits(like)
        record = latest.record if latest else Record()
        writer = stack.enter_context(MetricWriter(workdir, config.duration, record.writer))
        checkpoints.discard_later()

        experiment = load(config, splits)
        state, train_data, mesh = experiment.state, experiment.train_data, experiment.mesh
        print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
        part = config.batch_size // (mesh.size * config.accumulate)
        print(f"Batches of {config.batch_size} = {mesh.size} devices x {config.accumulate} parts x {part} images")
        loss = functools.partial(TASKS[config.task][0], **config.loss)
        train_program = create_train_program(loss, mesh, config.accumulate)
        zero_sums = create_zero_sums(loss, state, train_data, mesh, config.accumulate)
        sums = zero_sums()
        if config.chunked is None:
            config = settings.with_chunked(config, suits_chunks(train_program, state, sums, train_data))
        print(f"Training for {settings.describe(config)}", flush=True)
        # Where a chunk gives a NaN, JAX would name the loop instead of the operation.
        chunked = config.chunked and not jax.config.jax_debug_nans  # type: ignore[attr-defined]
        advance = Dispatcher(
            train_program,
            chunked=chunked,
            max_steps=config.steps_per_dispatch,
            sharding=replicated(mesh),
            progress=writer.progress.at,
        )
        curve_split = "validation" if config.num_validation else "test"

        if latest:
            state, sums = latest.restore_state(state), latest.restore_sums(sums)
            changes = average_table.changes(record.averages, state)
            print(f"Continuing {workdir} at step {record.step}", *changes, sep="\n", flush=True)
        elif origin:
            state = state.with_weights(**origin.read_weights(config.init_weights, state))
            print(f"Starting from the {config.init_weights} weights of {origin.folder}")
        settings.write(config, workdir)
        environment.write(workdir)
        for line in average_table.write(workdir, state, config.duration, random_start=not config.init_from):
            print(line, flush=True)
        profiler = stack.enter_context(Profiler(workdir / "profile", config.profile, record.step))
        step, best = record.step, record.best
        if not latest:
            checkpoints.save(state, sums, Record(writer=writer.record()))
        startup.mark("workdir")
        writer.add_time("startup_seconds", started)

        def evaluate_and_write(split: str) -> dict[str, dict[str, float]]:
            with writer.clock("eval_seconds"):
                metrics = evaluate(experiment, evaluation_curves(experiment, state), split)
            for curve, values in metrics.items():
                writer.write(step, curve, values, split=split)
            return metrics

        # An iteration trains up to the next step at which something is due, then logs, evaluates and saves, in this
        # order: so a checkpoint knows of everything written up to its step, and a run that continues from it repeats
        # nothing and loses nothing.
        while step < config.duration:
            profiler.at(step)
            with writer.clock("train_seconds"):
                state, sums, step = advance(state, sums, train_data, step, settings.next_due_step(config, step))
            rejected = check_rejections(experiment, state, loss)

            if settings.is_due(config, "log_every", step):
                writer.write(step, "train", mean_metrics(sums) | {"rejected_steps": int(rejected["total"])})
                sums = zero_sums()
            if settings.is_due(config, "eval_every", step):
                best = better(best, step, evaluate_and_write(curve_split), config.best_curve, config.best_metric)
            if step == config.duration and curve_split != "test":
                evaluate_and_write("test")
            if settings.is_due(config, "snapshot_every", step):
                checkpoints.save_snapshot(state, step)
            writer.write_progress(step)
            stop = interruption.requested()
            if stop or settings.is_due(config, "checkpoint_every", step) or (best and best["step"] == step):
                with writer.clock("checkpoint_seconds"):
                    checkpoints.save(state, sums, Record(step, best, writer.record()))
            if stop:
                raise interruption.Interrupted(step)

    say(f"{writer.times()}\n{page.write(workdir)}")
    return state


def create_zero_sums(
    loss_fn: LossFn,
    state: CustomTrainState,
    data: input_pipeline.TrainData,
    mesh: jax.sharding.Mesh,
    num_microbatches: int = 1,
) -> Callable[[], Metrics]:
    """A function that returns metric sums over no steps, for the metrics that this loss function has."""

    def metrics_of_a_step(state: CustomTrainState, data: input_pipeline.TrainData) -> Metrics:
        return train_step(state, data.batch(state.rng, state.step), loss_fn, num_microbatches)[1]

    metrics = jax.eval_shape(metrics_of_a_step, state, data)
    return jax.jit(lambda: jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics), out_shardings=replicated(mesh))


def mean_metrics(sums: Metrics) -> dict[str, float]:
    """Each metric's sum divided by its count; not a number where every step was rejected."""
    return {name: float(total) / count if count else math.nan for name, (total, count) in jax.device_get(sums).items()}


def better(
    best: dict[str, Any] | None, step: int, metrics: Mapping[str, Mapping[str, float]], curve: str, metric: str
) -> dict[str, Any] | None:
    """The best evaluation so far: `best`, or this step's if there was none of this curve and metric or it is better."""
    metric = metric or ("accuracy" if "accuracy" in metrics[curve] else "loss")
    if metric not in metrics[curve]:
        raise UserError(f"best_metric = {metric!r}: what is scored has only {', '.join(metrics[curve])}")
    value = metrics[curve][metric]
    new = {"step": step, "curve": curve, "metric": metric, "value": value}
    if best is None or (best["curve"], best["metric"]) != (curve, metric):
        return new if math.isfinite(value) else None
    return new if (value < best["value"] if metric == "loss" else value > best["value"]) else best


def check_rejections(experiment: Experiment, state: CustomTrainState, loss_fn: LossFn) -> dict[str, np.ndarray]:
    """How many steps were rejected so far: `state.rejected`, on the host.

    Args:
        experiment: whose training it is.
        state: after the latest step.
        loss_fn: the objective.

    Raises:
        UserError: too many in a row, with what the last of them shows of the reason.
    """
    rejected: dict[str, np.ndarray] = jax.device_get(state.rejected)
    config, data, step = experiment.config, experiment.train_data, int(state.step)
    if rejected["longest"] < config.max_rejected_steps:
        return rejected
    if rejected["streak"] == 0:
        found = "Later ones were accepted; --config.log_every=1steps ends training earlier, and tells more."
    else:
        before = state.replace(step=state.step - 1)
        batch = data.batch(before.rng, before.step)
        _, _, batch_stats, grads = jax.jit(compute_gradients, static_argnums=(2, 3))(
            before, batch, loss_fn, config.accumulate
        )
        after = before.apply_gradients(grads=grads, batch_stats=batch_stats)
        found = (
            f"At step {step}: learning rate {optimizers.learning_rate(after.opt_state):g}, gradient norm "
            f"{optax.tree.norm(grads):g}, first not finite {nonfinite.first_layer(loss_fn, before, batch, grads)}."
        )
    raise UserError(
        f"{rejected['longest']} steps in a row had a loss or gradient that is not finite; max_rejected_steps = "
        f"{config.max_rejected_steps} allows no more. {found} A smaller optimizer.learning_rate or a limit for the "
        "gradient such as --config.optimizer.clip_norm=1 may help. The last checkpoint is as it was."
    )


def evaluate_checkpoint(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    which: str = "latest",
    config_change: str = "refuse",
) -> dict[str, dict[str, float]]:
    """Scores a checkpoint of an existing run on the test set. Trains nothing and writes nothing.

    Args:
        config: the run's config.
        workdir: folder of the run.
        which: "latest" or "best".
        config_change: see `train_and_evaluate`.

    Returns:
        The metrics of every curve and paired difference.

    Raises:
        UserError: a config, data set or workdir that cannot be used.
    """
    config, source = check(config, workdir, config_change)
    stored = checkpointing.find_checkpoint(workdir, which)
    stored.check_fits(abstract_state(config, source))
    experiment = load(config, read(config, source))
    # The config may have averages that the checkpoint lacks.
    averages = tuple(average for average in experiment.state.averages if average.name in stored.curves)
    curves = evaluation_curves(experiment, stored.restore_state(experiment.state.with_averages(averages)))
    metrics = evaluate(experiment, curves, "test")
    print(f"{workdir}, {which} checkpoint, step {stored.record.step}, test images")
    print(tables.table(runs.summarize([metrics])), flush=True)
    return metrics
