"""Why averaging works for a run, or doesn't: the loss around its raw and averaged weights, in pictures and numbers.

    python -m tools.diagnose runs/mnist
    python -m tools.diagnose runs/mnist runs/mnist_seed1

Scores weights on the line through raw and average, on the line between two checkpoints, and in the plane through all
three; with a second run of the same model, on the line between the runs too, with hidden units matched and not.
Measures how sharply the loss curves at raw and average, which oscillations of single weights the average removes, and
how averaged weights compare with averaged predictions. Some hundred steps of training are repeated for that.

Numbers and pictures go to WORKDIR/diagnosis, and into the run's report.html. Nothing else in WORKDIR is changed. A run
with --config.snapshot_every=6.25% has more weights to look at.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy import special
from tqdm import tqdm

import averaging
import evaluation
import input_pipeline
import settings
import train
from evaluation import Scores
from input_pipeline import EvalData, Images
from reporting import diagnosis, page
from reporting.runs import Run
from runtime import checkpointing, environment, intervals, run_folder
from runtime.checkpointing import Stored
from runtime.errors import UserError
from runtime.progress import under_way
from tools.diagnosis import curvature, landscape, matching, spectrum

Variables = dict[str, Any]  # parameters and batch statistics

THROUGH = np.arange(-6, 13) / 6  # places on the line through raw and average, which are at 0 and 1
BETWEEN = np.linspace(0, 1, 11)  # places between two other weights
GRID = 10  # points of the plane in each direction
BATCH_SIZE = 125  # larger ones have temporary arrays that a CPU allocates anew at each batch, which takes longer
NUM_BATCHES = 16  # of the training images, for the curvature
NUM_EIGENVALUES = 2
NUM_PROBES = 2  # for each batch
NUM_TRACED = 256  # weights
NUM_ITERATES = 8  # whose weights and predictions are averaged


class NotPossibleError(Exception):
    """A part of the diagnosis that this run does not allow, with the reason."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run with the images on which its weights are scored.

    Attributes:
        workdir: of the run.
        experiment: its data and a state like its own.
        average: the name of the average to look at.
        stored: what it stored, the latest last.
        images: samples by the name of their split, "train" and the one that the run's curves come from.
    """

    workdir: pathlib.Path
    experiment: train.Experiment
    average: str
    stored: Sequence[Stored]
    images: Mapping[str, EvalData]

    @classmethod
    def of(cls, workdir: pathlib.Path, average: str, num_images: int) -> Self:
        """Reads a run.

        Args:
            workdir: of the run.
            average: the name of one of its averages, or empty for the one that its best evaluation goes by.
            num_images: of each sample, at most.

        Raises:
            UserError: there is no such run or average.
        """
        config = settings.read(workdir)
        stored = checkpointing.list_stored(workdir)
        if not stored:
            raise UserError(f"{workdir} has stored no weights yet; wait for its first checkpoint")
        names = [average.name for average in stored[-1].record.averages if average.name in config.averages]
        if average not in ("", *names) or not names:
            known = ", ".join(names) or "no average; a run with one is needed"
            raise UserError(f"--average={average or '...'}: {workdir} has {known}")
        average = average or (config.best_curve if config.best_curve in names else names[0])
        source = input_pipeline.find_source(config.dataset)
        checkpointing.find_checkpoint(workdir, "latest").check_fits(train.abstract_state(config, source))
        splits = train.read(config, source)
        experiment = train.load(config, splits)
        held_out = {"validation": splits.validation} if config.num_validation else {"test": splits.test}
        images = {
            name: EvalData.of(
                sample(images, num_images), experiment.train_data.normalization, BATCH_SIZE, experiment.mesh.size
            )
            for name, images in {"train": splits.train, **held_out}.items()
        }
        sharding = train.replicated(experiment.mesh)
        images = {name: jax.device_put(data, sharding) for name, data in images.items()}  # in this order
        return cls(workdir, experiment, average, stored, images)

    def with_half(self) -> Self:
        """The same with about half of the images."""
        halves = {}
        for name, data in self.images.items():
            size = data.batch_size * max(1, data.num_batches // 2)
            halves[name] = data.replace(image=data.image[:size], label=data.label[:size], mask=data.mask[:size])
        return dataclasses.replace(self, images=halves)

    @property
    def held_out(self) -> str:
        """The split that was not trained on."""
        return next(split for split in self.images if split != "train")

    @property
    def score_fn(self) -> evaluation.ScoreFn:
        """How the run's task is scored."""
        return train.TASKS[self.experiment.config.task][1]

    def weights(self, stored: Stored, name: str) -> Variables:
        """Raw or averaged weights of a checkpoint or snapshot, with the batch statistics that are stored with them."""
        return jax.device_put(stored.read_weights(name, self.experiment.state), train.replicated(self.experiment.mesh))

    def recomputed(self, variables: Variables) -> Variables:
        """The same weights with batch statistics of their own, from about as many training images as are scored."""
        if not variables["batch_stats"]:
            return variables
        data = self.experiment.train_data
        batch_stats = evaluation.recompute_batch_stats(
            variables,
            data,
            self.experiment.state.rng,
            batches=range(math.ceil(int(self.images["train"].mask.sum()) / data.batch_size)),
            apply_fn=self.experiment.state.apply_fn,
            sharding=train.split_batch(self.experiment.mesh),
        )
        return {"params": variables["params"], "batch_stats": batch_stats}

    @property
    def statistics(self) -> dict[str, Callable[[Variables], Variables]]:
        """What to do about the batch statistics of a point between weights, by what it is called."""
        if not self.experiment.state.batch_stats:
            return {"": lambda variables: variables}
        return {"statistics recomputed": self.recomputed, "not recomputed": lambda variables: variables}

    def scores(self, variables: Variables, split: str, score_fn: evaluation.ScoreFn | None = None) -> Scores:
        """Scores of each image of a sample, by the run's own task or another function."""
        return evaluation.score(
            {"weights": variables},
            self.images[split],
            apply_fn=self.experiment.state.apply_fn,
            score_fn=score_fn or self.score_fn,
            sharding=train.split_batch(self.experiment.mesh),
        )["weights"]


def sample(images: Images, number: int) -> Images:
    """Random images, each at most once."""
    return images.take(np.random.default_rng(0).permutation(len(images))[:number])


def line(
    subject: Subject, start: Variables, end: Variables, shares: np.ndarray, what: str = ""
) -> list[dict[str, Any]]:
    """Scores along the line through two sets of weights.

    Args:
        subject: the run.
        start: at 0.
        end: at 1.
        shares: places on the line, among them 0 and 1.
        what: is said of these two weights, for the names of the curves.

    Returns:
        For each treatment of batch statistics and each split a curve: its `name` and `split`, `loss` and, if there is
        one, `accuracy` at each place; the `difference`s of the scores at 1 and at 0; and the `barrier` between these,
        with its 95 % interval over images, and where it is.
    """
    curves: list[dict[str, Any]] = []
    for how, prepare in subject.statistics.items():
        scores: dict[str, list[Scores]] = {split: [] for split in subject.images}
        for share in tqdm(shares, what or how, leave=False, disable=None):
            point = prepare(landscape.interpolate(start, end, share))
            for split, of_split in scores.items():
                of_split.append(subject.scores(point, split))
        for split, of_split in scores.items():
            metrics = [evaluation.summarize(of_place) for of_place in of_split]
            excess = landscape.excess(shares, np.array([of_place["loss"] for of_place in of_split]))
            highest = max(np.flatnonzero((shares >= 0) & (shares <= 1)), key=lambda place: excess[place].mean())
            at_start, at_end = (of_split[np.flatnonzero(shares == place)[0]] for place in (0, 1))
            curve: dict[str, Any] = {"name": ", ".join(filter(None, (what, how))), "split": split}
            for metric in ("loss", "accuracy"):
                if metric in metrics[0]:
                    curve[metric] = [of_place[metric] for of_place in metrics]
            curve["difference"] = evaluation.compare(at_end, at_start)
            curve["barrier"] = intervals.mean_interval(excess[highest])
            curve["barrier_at"] = shares[highest]
            curves.append(curve)
    return curves


def through(subject: Subject) -> dict[str, Any]:
    """The line through raw and averaged weights, beyond both ends."""
    raw, average = (subject.weights(subject.stored[-1], name) for name in ("raw", subject.average))
    return {
        "shares": THROUGH,
        "ends": ["raw", subject.average],
        "distance": float(evaluation.distance(raw["params"], average["params"])),
        "norm": float(optax.tree.norm(raw["params"])),
        "curves": line(subject, raw, average, THROUGH),
    }


def earlier(subject: Subject) -> Stored:
    """What was stored nearest to the middle of training.

    Raises:
        NotPossibleError: there is nothing but the latest checkpoint.
    """
    others = [stored for stored in subject.stored[:-1] if stored.record.updates < subject.stored[-1].record.updates]
    if not others:
        raise NotPossibleError("the run has stored nothing but its latest weights")
    return min(others, key=lambda stored: abs(stored.record.step - subject.stored[-1].record.step / 2))


def between_checkpoints(subject: Subject) -> dict[str, Any]:
    """The line between the raw weights of two checkpoints of the run."""
    first, last = earlier(subject), subject.stored[-1]
    start, end = (subject.weights(stored, "raw") for stored in (first, last))
    return {
        "shares": BETWEEN,
        "ends": [f"step {first.record.step}", f"step {last.record.step}"],
        "distance": float(evaluation.distance(start["params"], end["params"])),
        "curves": line(subject, start, end, BETWEEN),
    }


def find_other(subject: Subject, other: pathlib.Path) -> Stored:
    """The latest weights of another run.

    Raises:
        UserError: it is of another model or data set, or lacks this average.
    """
    mine, theirs = (settings.flatten(config) for config in (subject.experiment.config, settings.read(other)))
    for field in sorted(mine | theirs):
        if (field == "dataset" or field.startswith("model.")) and mine.get(field) != theirs.get(field):
            raise UserError(
                f"{other} has {field} = {theirs.get(field)}, {subject.workdir} {mine.get(field)}; only runs of the "
                "same model and data set can be compared"
            )
    stored = checkpointing.list_stored(other)
    if not stored or subject.average not in stored[-1].curves:
        raise UserError(f"{other} has stored no average named {subject.average}; name another with --average")
    stored[-1].weights_like(subject.average, subject.experiment.state)
    return stored[-1]


def between_runs(subject: Subject, other: pathlib.Path, stored: Stored) -> dict[str, Any]:
    """The line between the averages of two runs, as they are and after matching their hidden units.

    Args:
        subject: the one run.
        other: the workdir of the other.
        stored: its weights.
    """
    start, end = subject.weights(subject.stored[-1], subject.average), subject.weights(stored, subject.average)
    found: dict[str, Any] = {
        "shares": BETWEEN,
        "ends": [str(subject.workdir), str(other)],
        "distance": float(evaluation.distance(start["params"], end["params"])),
        "curves": line(subject, start, end, BETWEEN, "as trained"),
    }
    images = subject.images["train"].batch(jnp.int32(0))["image"]
    units = matching.find_units(subject.experiment.state.apply_fn, end, images)
    if units:
        matched = matching.permute(end, units, matching.match(units, start, end))
        found["curves"] += line(subject, start, matched, BETWEEN, "units matched")
        found["matched_distance"] = float(evaluation.distance(start["params"], matched["params"]))
    found["num_units"] = sum(group.size for group in units)
    return found


@dataclasses.dataclass(frozen=True)
class Trace:
    """Some hundred steps of training, repeated from a checkpoint.

    Attributes:
        step: of that checkpoint.
        kernel: of the average by the end, if it is the same in all these steps.
        weights: [2, steps, weights], of a few weights raw and averaged after each step.
        iterates: raw weights, at equal distances.
        averaged: averaged weights at the same steps.
    """

    step: int
    kernel: np.ndarray | None
    weights: np.ndarray
    iterates: Sequence[Variables]
    averaged: Sequence[Variables]


def retrain(subject: Subject, num_steps: int) -> Trace:
    """Repeats steps of training, from the latest checkpoint that has so many after it, or goes on after the last."""
    experiment = subject.experiment
    config, name = experiment.config, subject.average
    full = checkpointing.list_stored(subject.workdir, ["checkpoints"])
    if not full:
        raise UserError(f"{subject.workdir} holds no checkpoint to repeat steps of training from")
    start = ([stored for stored in full if stored.record.step + num_steps <= full[-1].record.step] or full)[-1]
    state = start.restore_state(experiment.state)
    loss = functools.partial(train.TASKS[config.task][0], **config.loss)
    size = ravel_pytree(state.params)[0].size
    chosen = np.random.default_rng(0).choice(size, min(size, NUM_TRACED), replace=False)

    @jax.jit
    def step(state: train.CustomTrainState, data: input_pipeline.TrainData) -> Any:
        batch = jax.lax.with_sharding_constraint(data.batch(state.rng, state.step), train.split_batch(experiment.mesh))
        state, _ = train.train_step(state, batch, loss, config.accumulate)
        return state, [ravel_pytree(params)[0][chosen] for params in (state.params, state.ema_params[name])]

    weights, iterates, averaged = [], [], []
    for number in tqdm(range(1, num_steps + 1), "steps", leave=False, disable=None):
        state, traced = step(state, experiment.train_data)
        weights.append(jax.device_get(traced))
        if number * NUM_ITERATES % num_steps < NUM_ITERATES:
            curves = state.curves()
            iterates.append(curves["raw"])
            averaged.append(curves[name])
    average = next(average for average in state.averages if average.name == name)
    count = int(state.ema_count[name])
    step_sizes = average.schedule(np.arange(max(1, count - num_steps), count + 1))
    # Where these change, as in a running mean, so does the kernel, and no single one says what becomes of oscillations.
    steady = bool(np.ptp(step_sizes) <= 0.05 * np.max(step_sizes))
    kernel = averaging.kernel(average.schedule, count) if steady else None
    return Trace(start.record.step, kernel, np.array(weights).swapaxes(0, 1), iterates, averaged)


def oscillations(trace: Trace) -> dict[str, Any]:
    """The power spectra of a few weights, raw and averaged, and what the average's kernel makes of the raw one."""
    raw, averaged = trace.weights
    if not np.any(np.ptp(raw, axis=0)):
        raise NotPossibleError(f"the learning rate is 0 from step {trace.step} on, and the weights stand still")
    (frequencies, before), (_, after) = map(spectrum.power, (raw, averaged))
    # The trend that was taken out has no power at 0.
    frequencies, before, after = frequencies[1:], before[1:], after[1:]
    found = {
        "step": trace.step,
        "num_steps": len(raw),
        "num_weights": raw.shape[1],
        "frequencies": frequencies,
        "raw": before.mean(axis=1),
        "averaged": after.mean(axis=1),
        "left": spectrum.ratio_interval(after.sum(axis=0), before.sum(axis=0)),
    }
    if trace.kernel is not None:
        kept = spectrum.transfer(trace.kernel, len(frequencies) + 1)[1:]
        found |= {"kept": kept, "predicted": float(kept**2 @ before.sum(axis=1) / before.sum())}
    return found


def plane(subject: Subject, trace: Trace) -> dict[str, Any]:
    """The loss in the plane through raw, average and an earlier checkpoint, with the path of training projected."""
    first, last = earlier(subject), subject.stored[-1]
    raw, average, before = (
        subject.weights(*where) for where in ((last, "raw"), (last, subject.average), (first, "raw"))
    )
    try:
        found = landscape.Plane.through(*(weights["params"] for weights in (raw, average, before)))
    except ValueError as error:
        raise NotPossibleError(f"raw, {subject.average} and step {first.record.step}: {error}") from error

    paths: dict[str, list[tuple[float, float, float]]] = {}
    for name in ("raw", subject.average):
        having = [stored for stored in subject.stored if name in stored.curves]
        paths[name] = [found.project(subject.weights(stored, name)["params"]) for stored in having]
    repeated = {
        name: [found.project(weights["params"]) for weights in along]
        for name, along in (("raw", trace.iterates), (subject.average, trace.averaged))
    }

    corners = {
        name: found.project(weights["params"])[:2]
        for name, weights in (("raw", raw), (subject.average, average), (f"step {first.record.step}", before))
    }
    # Room around the corners; of a long path, what is far away is not shown.
    xs, ys = np.array(list(corners.values())).T
    margin = 0.3 * max(np.ptp(xs), np.ptp(ys))
    x, y = (np.linspace(values.min() - margin, values.max() + margin, GRID) for values in (xs, ys))
    losses: dict[str, list[list[float]]] = {split: [] for split in subject.images}
    few = subject.with_half()  # for so many points
    for height in tqdm(y, "rows", leave=False, disable=None):
        row = [few.recomputed({**raw, "params": found.at(place, height)}) for place in x]
        for split, rows in losses.items():
            rows.append([evaluation.summarize(few.scores(point, split))["loss"] for point in row])
    return {"x": x, "y": y, "losses": losses, "corners": corners, "paths": paths, "repeated": repeated}


def sharpness(subject: Subject) -> dict[str, Any]:
    """The largest eigenvalues and the trace of the Hessian of the training loss, at raw and averaged weights.

    The loss is the one that evaluation reports, in evaluation mode.
    """
    state, score_fn = subject.experiment.state, subject.score_fn
    images = subject.images["train"]
    images = images.replace(batch_size=int(images.mask.sum()) // NUM_BATCHES)

    def loss(params: Any, batch_stats: Any, images: EvalData, index: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        return jnp.mean(score_fn(state.apply_fn, variables, images.batch(index))["loss"])

    def curvature_at(weights: Variables, name: str) -> curvature.Curvature:
        def product(vector: np.ndarray, batch: int) -> np.ndarray:
            bar.update()
            vector, index = np.asarray(vector, np.float32), np.int32(batch)
            made = curvature.hessian_product(loss, weights["params"], vector, weights["batch_stats"], images, index)
            return np.asarray(made, np.float64)

        with tqdm(desc=f"Hessian products at {name}", leave=False, disable=None) as bar:
            return curvature.measure(
                product,
                ravel_pytree(weights["params"])[0].size,
                num_batches=NUM_BATCHES,
                number=NUM_EIGENVALUES,
                num_probes=NUM_PROBES,
            )

    latest = subject.stored[-1]
    names = ["raw", subject.average]
    raw, average = (curvature_at(subject.recomputed(subject.weights(latest, name)), name) for name in names)
    found: dict[str, Any] = {"num_images": images.batch_size * NUM_BATCHES // 2}
    for name, at in zip(names, (raw, average), strict=True):
        found[name] = {
            "eigenvalues": at.eigenvalues,
            "residuals": at.residuals,
            "elsewhere": np.transpose(intervals.mean_interval(at.elsewhere)),
            "trace": intervals.mean_interval(at.traces),
        }
    found["difference"] = {
        "largest": intervals.mean_interval(average.elsewhere[:, 0] - raw.elsewhere[:, 0]),
        "trace": intervals.mean_interval(average.traces - raw.traces),
    }
    return found


def ensembles(subject: Subject, trace: Trace) -> dict[str, Any]:
    """Averaged weights against averaged predictions of the same iterates, of the newest 1, 2, ... of them."""
    stored = subject.stored[-NUM_ITERATES:]
    if len(stored) >= NUM_ITERATES // 2:
        steps = [point.record.step for point in stored]
        iterates = [subject.weights(point, "raw") for point in stored]
    else:
        steps, iterates = [], list(trace.iterates)
    label, mask = subject.images[subject.held_out].label, np.asarray(subject.images[subject.held_out].mask)
    # Of classes, probabilities are averaged, by their logarithms, which are logits; of other tasks, what is predicted.
    classes = subject.score_fn is evaluation.score_fn

    def output(apply_fn: Callable[..., Any], variables: Any, batch: Mapping[str, jax.Array]) -> Scores:
        made = apply_fn(variables, batch["image"], train=False)
        return {"output": jax.nn.log_softmax(made) if classes else made}

    outputs = [subject.scores(subject.recomputed(weights), subject.held_out, output)["output"] for weights in iterates]

    def score_outputs(some: Sequence[np.ndarray]) -> Scores:
        given = special.logsumexp(some, axis=0) - math.log(len(some)) if classes else np.mean(some, axis=0)
        scores = subject.score_fn(lambda *_, **__: given, {}, {"image": given, "label": np.asarray(label)[mask]})
        return {name: np.asarray(values) for name, values in scores.items()}

    found = collections.defaultdict(list)
    for number in range(1, len(iterates) + 1):
        weights = subject.recomputed(landscape.mean(iterates[-number:]))
        scores = {
            "single": score_outputs(outputs[-number:][:1]),
            "weights": subject.scores(weights, subject.held_out),
            "predictions": score_outputs(outputs[-number:]),
        }
        for name, values in scores.items():
            found[name].append(evaluation.summarize(values))
    return {
        "steps": steps,
        "split": subject.held_out,
        "difference": evaluation.compare(scores["weights"], scores["predictions"]),
        **found,
    }


def distances(subject: Subject, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The distance of raw and averaged weights over training, as it was logged."""
    lines = [line for line in metrics if line["curve"] == f"{subject.average}-raw"]
    found = {line["step"]: line["distance"] for line in lines if "distance" in line}
    if not found:
        raise NotPossibleError("the run was made before distances were logged")
    return {"steps": list(found), "distances": list(found.values())}


def diagnose(
    workdir: pathlib.Path, other: pathlib.Path | None = None, *, average: str = "", num_images: int, num_steps: int
) -> dict[str, Any]:
    """Looks at a run from all sides.

    Args:
        workdir: of the run.
        other: of a second run of the same model, or none.
        average: the name of the average to look at, or empty for the one that the best evaluation goes by.
        num_images: of training and of test images to score, at most.
        num_steps: of training to repeat.

    Returns:
        What each part found, by its name, as plain values; of a part that was not possible the reason as `skipped`.

    Raises:
        UserError: a run that cannot be used.
    """
    metrics = Run.read(workdir).lines
    subject = Subject.of(workdir, average, num_images)
    theirs = find_other(subject, other) if other else None
    found: dict[str, Any] = {
        "step": subject.stored[-1].record.step,
        "average": subject.average,
        "num_images": {split: int(images.mask.sum()) for split, images in subject.images.items()},
    }
    with under_way(f"Repeating {num_steps} steps of training"):
        trace = retrain(subject, num_steps)
    parts: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "line": (f"the line through raw and {subject.average}", lambda: through(subject)),
        "checkpoints": ("the line between two checkpoints", lambda: between_checkpoints(subject)),
        "plane": (f"the plane through raw, {subject.average} and an earlier checkpoint", lambda: plane(subject, trace)),
        "sharpness": ("curvature", lambda: sharpness(subject)),
        "ensembles": ("averaged weights and averaged predictions", lambda: ensembles(subject, trace)),
        "oscillations": ("spectra", lambda: oscillations(trace)),
        "distance": ("distances", lambda: distances(subject, metrics)),
    }
    if other and theirs:
        parts["runs"] = (f"the line to {other}", lambda: between_runs(subject, other, theirs))
    for number, (name, (what, part)) in enumerate(parts.items(), 1):
        with under_way(f"Part {number} of {len(parts)}: {what}"):
            try:
                found[name] = part()
            except NotPossibleError as error:
                found[name] = {"skipped": str(error)}
    return plain(found)


def plain(value: Any) -> Any:
    """Values as JSON has them, with None for what is not finite."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def main() -> None:
    """Diagnoses the run on the command line."""
    parser = argparse.ArgumentParser(
        "python -m tools.diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=pathlib.Path, metavar="WORKDIR", help="folder of the run")
    parser.add_argument("other", type=pathlib.Path, metavar="OTHER", nargs="?", help="folder of another run")
    parser.add_argument("--average", default="", help="name of the average; default: the one of config.best_curve")
    parser.add_argument("--images", type=int, default=1500, help="of each split to score; default: %(default)s")
    parser.add_argument("--steps", type=int, default=300, help="of training to repeat; default: %(default)s")
    args = parser.parse_args()
    if args.images < 2 * NUM_BATCHES or args.steps < 6 * NUM_ITERATES:
        parser.error(f"--images must be at least {2 * NUM_BATCHES}, --steps at least {6 * NUM_ITERATES}")
    try:
        found = diagnose(args.workdir, args.other, average=args.average, num_images=args.images, num_steps=args.steps)
        found["environment"] = environment.describe()
        found["command"] = shlex.join(["python", "-m", "tools.diagnose", *sys.argv[1:]])
        folder = args.workdir / "diagnosis"
        folder.mkdir(exist_ok=True)
        run_folder.replace_file(folder / "numbers.json", json.dumps(found) + "\n")
        print(diagnosis.write_pictures(folder, found))
        print(page.write(args.workdir))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
