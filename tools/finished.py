"""Runs read back from their workdirs, with their data: what tools do with them in common."""

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any, Self

import ml_collections

import evaluation
import settings
import train
from reporting import tables
from runtime import batch_statistics, freezing, run_config, sharding
from runtime.progress import say
from runtime.stored import Stored, find_checkpoint, list_stored

Variables = dict[str, Any]  # a model's parameters and batch statistics


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run as its workdir holds it. Weights and data are read when they are first asked for.

    Attributes:
        workdir: of the run.
        config: resolved; see `settings.resolve`.
    """

    workdir: pathlib.Path
    config: ml_collections.FrozenConfigDict

    @classmethod
    def read(cls, workdir: pathlib.Path) -> Self:
        """Reads the config of a run.

        Raises:
            UserError: there is no run.
        """
        return cls(workdir, run_config.read(workdir))

    @functools.cached_property
    def stored(self) -> list[Stored]:
        """Its checkpoints and snapshots; see `list_stored`."""
        return list_stored(self.workdir)

    @functools.cached_property
    def task(self) -> train.Task:
        """What it was trained on."""
        return train.find_task(self.config.task)

    @functools.cached_property
    def experiment(self) -> train.Experiment:
        """Its data on the devices, and a state at step 0 onto which its own can be restored."""
        return train.create_experiment(self.config, self.task, self.workdir)

    def weights(self, stored: Stored, name: str) -> Variables:
        """Raw or averaged weights on the devices, and the batch statistics with them; see `Stored.read_weights`."""
        return stored.read_weights(name, self.experiment.state)

    def recomputed(self, variables: Variables, num_batches: int) -> Variables:
        """The same weights with batch statistics from this many training batches; see `batch_statistics.recompute`."""
        experiment = self.experiment
        batch_stats = batch_statistics.recompute(
            variables,
            experiment.train_data,
            experiment.state,
            batches=range(num_batches),
            sharding=sharding.split_batch(experiment.mesh),
            frozen=freezing.paths(self.config.optimizer.groups),
        )
        return {**variables, "batch_stats": batch_stats}


def create_experiment(
    config: ml_collections.ConfigDict, workdir: pathlib.Path | None = None, config_change: str = "refuse"
) -> train.Experiment:
    """The experiment of a config that is not resolved yet; see `train.create_experiment`.

    Args:
        config: see configs/default.py.
        workdir: of its run; None if there is none.
        config_change: see `train.train_and_evaluate`.

    Raises:
        UserError: a config, data set or workdir that cannot be used.
    """
    task = train.find_task(config.task)
    with tempfile.TemporaryDirectory() as empty:
        resolved = settings.prepare(config, task, workdir or pathlib.Path(empty), config_change)
    return train.create_experiment(resolved, task, workdir)


def evaluate_checkpoint(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, which: str = "latest", config_change: str = "refuse"
) -> evaluation.Metrics:
    """Scores a checkpoint of a run on the test set and prints the table. Trains nothing and writes nothing.

    Args:
        config: the run's config.
        workdir: folder of the run.
        which: "latest" or "best".
        config_change: see `train.train_and_evaluate`.

    Returns:
        The metrics by name of the weights or of a difference; see `evaluation.evaluate`.

    Raises:
        UserError: a config, data set or workdir that cannot be used.
    """
    experiment = create_experiment(config, workdir, config_change)
    checkpoint = find_checkpoint(workdir, which)
    # What is stored is scored as what it is: the config may have other averages by now.
    averages = tuple(average for average in checkpoint.record.averages if average.name in experiment.config.averages)
    state = checkpoint.restore_state(experiment.state.with_averages(averages))
    metrics = train.evaluate(experiment, state, ["test"])["test"]
    say(f"{workdir}, {which} checkpoint, step {checkpoint.record.step}, on the test set")
    say(tables.of_evaluation(metrics, experiment.config))
    return metrics
