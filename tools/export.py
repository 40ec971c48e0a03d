"""Writes averaged (or raw) weights for use without the optimizer, and without this project.

    python -m tools.export runs/mnist --average=ema --out=exported

DIR/weights.safetensors holds the parameters and batch statistics by their paths, such as "params/Dense_0/kernel";
DIR/weights.msgpack the same as a tree, in Flax's own format; DIR/weights.json what they are: the run's config, the
average and its step, how to normalise images, the names of the classes, and the scores on the test images.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import jax
import safetensors.flax
from flax import serialization, traverse_util

import evaluation
import train
from input_pipeline import TrainData
from reporting import tables
from runtime import run_config, sharding
from runtime.errors import UserError
from runtime.files import local_path, replace_file
from runtime.progress import say
from runtime.stored import find_checkpoint
from tools.finished import FinishedRun


def export(workdir: pathlib.Path, name: str, out: pathlib.Path, which: str) -> evaluation.Metrics:
    """Writes raw or averaged weights from a checkpoint.

    Args:
        workdir: of the run.
        name: an average's name, or "raw".
        out: folder to write to; created if it does not exist.
        which: "latest" or "best".

    Returns:
        The metrics of the raw weights and of what was written, on the test images.

    Raises:
        UserError: there is no such run, checkpoint or average.
    """
    run, checkpoint = FinishedRun.read(workdir), find_checkpoint(workdir, which)
    step = checkpoint.record.step
    if name not in checkpoint.names:
        raise UserError(f"--average={name}: the checkpoint at step {step} has {', '.join(checkpoint.names)}")
    chosen = tuple(average for average in checkpoint.record.averages if average.name == name)
    experiment = run.experiment
    state = checkpoint.restore_state(experiment.state.with_averages(chosen))
    scored = evaluation.weights_to_score(
        state, experiment.train_data, run.config.recompute_batches, sharding.split_batch(experiment.mesh)
    )
    metrics = train.evaluate_weights(experiment, scored, "test")

    weights: dict[str, Any] = {key: values for key, values in jax.device_get(scored[name]).items() if values}
    about = {
        "step": step,
        "average": chosen[0].to_dict() if chosen else None,
        "scores": metrics,
        **_about_images(experiment.train_data),
        "config": json.loads(run_config.to_json(run.config)),
    }
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "weights.safetensors", safetensors.flax.save(traverse_util.flatten_dict(weights, sep="/")))
    replace_file(out / "weights.msgpack", serialization.msgpack_serialize(weights))
    replace_file(out / "weights.json", json.dumps(about, indent=2) + "\n")
    return metrics


def _about_images(data: Any) -> dict[str, Any]:
    """The images that a model takes, how to normalise them, and the classes; empty if it takes something else."""
    if not isinstance(data, TrainData):
        return {}
    mean, std = data.normalization.mean.tolist(), data.normalization.std.tolist()
    classes = {"num_classes": data.num_classes, "class_names": data.class_names}
    return {"image_shape": data.image.shape[1:], **classes, "mean": mean, "std": std}


def main() -> None:
    """Exports what the arguments ask for."""
    parser = argparse.ArgumentParser(
        "python -m tools.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=local_path, help="folder of the run")
    parser.add_argument("--average", required=True, help="name of the average, or raw")
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder to write to")
    parser.add_argument("--checkpoint", choices=("latest", "best"), default="latest", help="default: latest")
    args = parser.parse_args()
    try:
        metrics = export(args.workdir, args.average, args.out, args.checkpoint)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    say(tables.of_evaluation(metrics, run_config.read(args.workdir)))
    say(f"Written to {args.out}: weights.safetensors, weights.msgpack, weights.json")


if __name__ == "__main__":
    main()
