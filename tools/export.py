"""Writes averaged (or raw) weights for use without the optimizer, and without this project.

    python -m tools.export runs/mnist --average=ema --out=exported

DIR/weights.safetensors holds the parameters and batch statistics by their paths, such as "params/Dense_0/kernel";
DIR/weights.msgpack the same as a tree, in Flax's own format; DIR/weights.json what they are: the run's config, the
average and its step, how to normalise images, and the scores on the test images.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import jax
from flax import serialization, traverse_util
from safetensors import SafetensorError
from safetensors.flax import save_file

import input_pipeline
import settings
import train
from reporting import runs, tables
from runtime import checkpointing
from runtime.errors import UserError


def export(workdir: pathlib.Path, name: str, out: pathlib.Path, which: str) -> dict[str, dict[str, float]]:
    """Writes one curve's weights from a checkpoint.

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
    config = settings.read(workdir)
    stored = checkpointing.find_checkpoint(workdir, which)
    record = stored.record
    chosen = tuple(average for average in record.averages if average.name == name)
    if name != "raw" and not chosen:
        names = ", ".join(["raw", *(average.name for average in record.averages)])
        raise UserError(f"--average={name}: the checkpoint at step {record.step} has {names}")
    source = input_pipeline.find_source(config.dataset)
    stored.check_fits(train.abstract_state(config, source))
    experiment = train.load(config, train.read(config, source))
    curves = train.evaluation_curves(experiment, stored.restore_state(experiment.state.with_averages(chosen)))
    metrics = train.evaluate(experiment, curves, "test")

    weights: dict[str, Any] = {key: values for key, values in jax.device_get(curves[name]).items() if values}
    normalization = jax.device_get(experiment.train_data.normalization)
    about = {
        "step": record.step,
        "average": chosen[0].to_dict() if chosen else None,
        "scores": metrics,
        "image_shape": source.image_shape,
        "num_classes": source.num_classes,
        "mean": normalization.mean.tolist(),
        "std": normalization.std.tolist(),
        "config": json.loads(settings.to_json(config)),
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(traverse_util.flatten_dict(weights, sep="/"), out / "weights.safetensors")
    (out / "weights.msgpack").write_bytes(serialization.msgpack_serialize(weights))
    (out / "weights.json").write_text(json.dumps(about, indent=2) + "\n")
    return metrics


def main() -> None:
    """Exports what the arguments ask for."""
    parser = argparse.ArgumentParser(
        "python -m tools.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=pathlib.Path, help="folder of the run")
    parser.add_argument("--average", required=True, help="name of the average, or raw")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--checkpoint", choices=("latest", "best"), default="latest", help="default: latest")
    args = parser.parse_args()
    try:
        metrics = export(args.workdir, args.average, args.out, args.checkpoint)
    except (UserError, OSError, SafetensorError) as error:
        sys.exit(f"error: {error}")
    print(tables.table(runs.summarize([metrics])))
    print(f"Written to {args.out}: weights.safetensors, weights.msgpack, weights.json")


if __name__ == "__main__":
    main()
