"""A finished run under diagnosis, with samples of its images to score weights on."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Self

import jax
import numpy as np

import evaluation
from evaluation import Scores
from input_pipeline import EvalData, TrainData
from runtime import stream
from runtime.errors import UserError
from runtime.sharding import replicated, split_batch
from runtime.stream import Stream
from tools.finished import FinishedRun, Variables

BATCH_SIZE = 125  # larger ones have temporary arrays that a CPU allocates anew at each batch, which takes longer


class NotPossibleError(Exception):
    """A part of the diagnosis that this run does not allow, with the reason."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run, one of its averages, and images on which its weights are scored.

    Attributes:
        run: with its data; it has stored weights.
        average: the name of the average to look at.
        images: samples by the name of their split, "train" and then the one that the run's curves come from.
    """

    run: FinishedRun
    average: str
    images: Mapping[str, EvalData]

    @classmethod
    def read(cls, workdir: pathlib.Path, average: str, num_images: int) -> Self:
        """Reads a run.

        Args:
            workdir: of the run.
            average: the name of one of its averages, or empty for the one that its best evaluation goes by.
            num_images: of each sample, at most.

        Raises:
            UserError: there is no such run or average.
        """
        run = FinishedRun.read(workdir)
        if not run.stored:
            raise UserError(f"{workdir} has stored no weights yet; wait for its first checkpoint")
        names = [average.name for average in run.stored[-1].record.averages if average.name in run.config.averages]
        if average not in ("", *names) or not names:
            known = ", ".join(names) or "no average; a run with one is needed"
            raise UserError(f"--average={average or '...'}: {workdir} has {known}")
        if "loss" not in run.config.get("metrics", ("loss",)):
            raise UserError(f"{workdir}: its task {run.config.task!r} scores no loss, which tools.diagnose needs")
        if not isinstance(stream.like(run.experiment.train_data), TrainData):
            raise UserError(f"{workdir}: its task {run.config.task!r} has no images, which tools.diagnose needs")
        average = average or (run.config.best_curve if run.config.best_curve in names else names[0])
        train_data, mesh = run.experiment.train_data, run.experiment.mesh
        held_out, eval_data = next(iter(run.experiment.eval_data.items()))
        images = {
            "train": sample(train_data, num_images, mesh),
            held_out: sample(eval_data, num_images, mesh),
        }
        return cls(run, average, images)

    @property
    def score_fn(self) -> evaluation.ScoreFn:
        """That of the run's task."""
        score_fn = self.run.experiment.task.score_fn
        assert score_fn, "it scores a loss"
        return score_fn

    def with_half(self) -> Self:
        """The same with about half of the images."""
        halves = {}
        for name, data in self.images.items():
            size = data.batch_size * max(1, data.num_batches // 2)
            halves[name] = data.replace(image=data.image[:size], label=data.label[:size], mask=data.mask[:size])
        return dataclasses.replace(self, images=halves)

    def recomputed(self, variables: Variables) -> Variables:
        """The same weights with batch statistics of their own, from about as many training images as are scored."""
        if not variables["batch_stats"]:
            return variables
        num_images = int(self.images["train"].mask.sum())
        return self.run.recomputed(variables, math.ceil(num_images / self.run.config.batch_size))

    @property
    def statistics(self) -> dict[str, Callable[[Variables], Variables]]:
        """The ways to treat batch statistics of a point between weights, by their names."""
        if not self.run.experiment.state.batch_stats:
            return {"": lambda variables: variables}
        return {"statistics recomputed": self.recomputed, "not recomputed": lambda variables: variables}

    def scores(self, variables: Variables, split: str, score_fn: evaluation.ScoreFn | None = None) -> Scores:
        """Scores of each image of a sample, by the run's own task or another function."""
        experiment = self.run.experiment
        eval_step = functools.partial(
            evaluation.eval_step,
            apply_fn=experiment.state.apply_fn,
            score_fn=score_fn or self.score_fn,
            sharding=split_batch(experiment.mesh),
        )
        return evaluation.score({"raw": variables}, self.images[split], eval_step)["raw"]


def sample(data: TrainData | EvalData | Stream, number: int, mesh: jax.sharding.Mesh) -> EvalData:
    """Random images, each at most once."""
    chosen = np.random.default_rng(0).permutation(len(data.images))[:number]
    images, normalization = data.images.take(chosen).in_memory(), stream.like(data).normalization
    return jax.device_put(EvalData.from_images(images, normalization, BATCH_SIZE, mesh.size), replicated(mesh))
