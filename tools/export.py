"""Writes averaged (or raw) weights for use without the optimizer, and without this project.

    python -m tools.export runs/mnist --average=ema --out=exported

DIR/weights.safetensors holds the parameters and batch statistics by their paths, such as "params/Dense_0/kernel";
DIR/weights.msgpack the same as a tree, in Flax's own format; DIR/weights.json what they are: the run's config, the
average and its step, how to normalise images, the names of the classes, and the scores on the test images. `predict`
applies what was written to other images. Each --format writes one file more; where DIR holds an earlier export, the
files of formats that are not asked for are removed.

With --format=torch, DIR/model.safetensors holds the weights by the names of torchvision and timm, whose models load it:

    torchvision.models.resnet50(num_classes=10).load_state_dict(safetensors.torch.load_file("DIR/model.safetensors"))

With --format=stablehlo, DIR/model.stablehlo holds the model with its weights, for CPU, GPU and TPU, as a program that
JAX runs on images as they are, uint8 [n, height, width, channels], and that returns the model's outputs:

    jax.export.deserialize(open("DIR/model.stablehlo", "rb").read()).call(images)
"""

import json
import pathlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.flax
import safetensors.numpy
from flax import serialization, traverse_util

import evaluation
import settings
import tools
import train
from input_pipeline import Normalization, TrainData
from reporting import tables
from runtime import caching, foreign_names, run_config, stream
from runtime.errors import UserError
from runtime.fields import with_tuples
from runtime.files import local_path, replace_file
from runtime.progress import say
from runtime.stored import find_checkpoint
from tools import command_line
from tools.finished import FinishedRun

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # of a program


def export(
    workdir: pathlib.Path, name: str, out: pathlib.Path, which: str, formats: Collection[str] = ()
) -> evaluation.Metrics:
    """Writes raw or averaged weights from a checkpoint.

    Args:
        workdir: of the run.
        name: an average's name, or "raw".
        out: folder to write to; created if it does not exist.
        which: "latest" or "best".
        formats: of `FORMATS`, each of which is one more file.

    Returns:
        The metrics of the raw weights and of what was written, on the test images.

    Raises:
        UserError: there is no such run, checkpoint or average, or a format that the model cannot be written in.
    """
    run, checkpoint = FinishedRun.read(workdir), find_checkpoint(workdir, which)
    step = checkpoint.record.step
    if name not in checkpoint.names:
        raise UserError(f"--average={name}: the checkpoint at step {step} has {', '.join(checkpoint.names)}")
    chosen = tuple(average for average in checkpoint.record.averages if average.name == name)
    experiment = run.experiment
    state = checkpoint.restore_state(experiment.state.with_averages(chosen))
    scored = evaluation.weights_to_score(state, experiment.train_data, run.config.recompute_batches, experiment.mesh)
    weights: dict[str, Any] = {key: values for key, values in jax.device_get(scored[name]).items() if values}
    about = {
        "step": step,
        "average": chosen[0].to_dict() if chosen else None,
        **_about_images(stream.like(experiment.train_data)),
        "config": json.loads(run_config.to_json(run.config)),
    }
    files = {FORMATS[form][0]: FORMATS[form][1](weights, about) for form in formats}  # before what takes longer
    metrics = train.evaluate_weights(experiment, scored, "test")
    out.mkdir(parents=True, exist_ok=True)
    again = (out / "weights.json").exists()
    replace_file(out / "weights.safetensors", safetensors.flax.save(traverse_util.flatten_dict(weights, sep="/")))
    replace_file(out / "weights.msgpack", serialization.msgpack_serialize(weights))
    replace_file(out / "weights.json", json.dumps(about | {"scores": metrics}, indent=2) + "\n")
    for file, _ in FORMATS.values() if again else ():  # would be taken for what is exported now
        (out / file).unlink(missing_ok=True)
    for file, content in files.items():
        replace_file(out / file, content)
    return metrics


def for_torch(variables: Mapping[str, Any], about: Mapping[str, Any]) -> bytes:
    """A safetensors file of a model's variables by the names of torchvision and timm, or a UserError."""
    del about
    flat = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(variables, sep="/").items()}
    return safetensors.numpy.save(foreign_names.write(flat), {"format": "pt"})


def as_stablehlo(variables: Mapping[str, Any], about: Mapping[str, Any]) -> bytes:
    """The program of a model and its weights, as `jax.export` writes it, for any number of images.

    Args:
        variables: of the model.
        about: as in `weights.json`, without scores.

    Raises:
        UserError: the model takes something else than images, or looks at their number, or `flatbuffers` is missing.
    """
    if "image_shape" not in about:
        what = f"task {about['config']['task']!r} has data of its own"
        raise UserError(f"--format=stablehlo: {what}, so that it is not known which images its model takes")
    shape = jax.export.symbolic_shape(", ".join(map(str, ("n", *about["image_shape"]))))
    export_program = jax.export.export(jax.jit(create_program(variables, about)), platforms=PLATFORMS)
    try:
        program = export_program(jax.ShapeDtypeStruct(shape, np.uint8))
    except Exception as error:  # of a model of anybody's
        what = "the model is no function of any number of images (docs/finetune.md)"
        raise UserError(f"--format=stablehlo: {what}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    try:
        return bytes(program.serialize())
    except ImportError as error:  # TensorFlow brings it
        raise UserError(f"--format=stablehlo: {error}; pip install flatbuffers") from error


def create_program(variables: Mapping[str, Any], about: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """What makes a model's outputs of images, uint8 [n, height, width, channels]; arguments as for `as_stablehlo`."""
    config, shape = with_tuples(about["config"]), about["image_shape"]
    example = jnp.zeros((1, *shape)), jnp.zeros((1, about["num_classes"]))
    model = settings.create_model(train.find_task(config["task"]), config, example)
    normalize = Normalization(jnp.array(about["mean"]), jnp.array(about["std"]))
    return lambda images: model.apply(variables, normalize(images), train=False)


# By name: the file, and what makes its content of the variables and of what `weights.json` says of them.
FORMATS: dict[str, tuple[str, Callable[[Mapping[str, Any], Mapping[str, Any]], bytes]]] = {
    "torch": ("model.safetensors", for_torch),
    "stablehlo": ("model.stablehlo", as_stablehlo),
}


def predict(exported: str | pathlib.Path, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The class probabilities of images, by exported weights of a classifier.

    Args:
        exported: folder that `export` has written.
        images: uint8 [n, height, width, channels], of the size in `weights.json`; what normalises them is there, too.

    Returns:
        Probabilities, float32 [n, classes], and the names of the classes.

    Raises:
        UserError: the folder holds no exported classifier, or the images are others than it takes.
    """
    folder = local_path(exported)
    try:
        about = json.loads((folder / "weights.json").read_text("utf-8"))
        variables = serialization.msgpack_restore((folder / "weights.msgpack").read_bytes())
        task = about["config"]["task"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no export ({error}); python -m tools.export RUN --out={folder} ...") from error
    if "image_shape" not in about or "accuracy" not in about["scores"]["raw"]:
        raise UserError(f"{folder} holds no classifier of images: it was trained on task {task!r}")
    shape = tuple(about["image_shape"])
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        takes = f"uint8 [n, {', '.join(map(str, shape))}], n > 0"
        raise UserError(f"images are {images.dtype} {[*images.shape]}; the export in {folder} takes {takes}")
    program = create_program(variables, about)
    parts = np.array_split(images, -(-len(images) // 500))  # for many would not fit into memory at once
    logits = [program(jnp.asarray(part)) for part in parts]
    probabilities = np.asarray(jax.nn.softmax(jnp.concatenate(logits)))
    return probabilities, about["class_names"] or [str(number) for number in range(about["num_classes"])]


def _about_images(data: Any) -> dict[str, Any]:
    """The images that a model takes, how to normalise them, and the classes; empty if it takes something else."""
    if not isinstance(data, TrainData):
        return {}
    mean, std = data.normalization.mean.tolist(), data.normalization.std.tolist()
    classes = {"num_classes": data.num_classes, "class_names": data.class_names}
    return {"image_shape": data.image.shape[1:], **classes, "mean": mean, "std": std}


def main() -> None:
    """Exports what the arguments ask for."""
    parser = tools.parser("export", __doc__)
    parser.add_argument("workdir", type=local_path, help="folder of the run")
    parser.add_argument("--average", required=True, help="name of the average, or raw")
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder to write to")
    parser.add_argument("--checkpoint", choices=("latest", "best"), default="latest", help="default: latest")
    parser.add_argument("--format", action="append", choices=FORMATS, default=[], help="one file more, see above")
    args = parser.parse_args()
    try:
        caching.enable_if_possible(command_line.CACHE_DIR)
        metrics = export(args.workdir, args.average, args.out, args.checkpoint, args.format)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    say(tables.of_evaluation(metrics, run_config.read(args.workdir)))
    files = ["weights.safetensors", "weights.msgpack", "weights.json", *(FORMATS[form][0] for form in args.format)]
    say(f"Written to {args.out}: {', '.join(files)}")


if __name__ == "__main__":
    main()
