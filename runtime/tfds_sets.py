"""Data sets of TensorFlow Datasets (TFDS), which are kept decoded for later runs."""

import dataclasses
import difflib
import json
import math
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from runtime.caching import CachedArrays
from runtime.errors import UserError, missing_package
from runtime.files import has_wildcards
from runtime.progress import under_way
from runtime.records import RecordImages, TFRecords, read_labels
from runtime.sources import SPLITS, Images, Source

# Bytes of images from which on a set stays in its files. Fixed, and not by the memory there is: TensorFlow reads files
# in turns, so that its order of the images, and with it each batch, is another.
LARGE = 2**31
# What reads and decodes a set, for which what is kept of it is good.
CODE = ("tensorflow", "tensorflow_datasets", "runtime.tfds_sets", "runtime.records", "runtime.sources")


def find_tfds_source(
    dataset: str, known: Collection[str], splits: tuple[str, str] = SPLITS, image_size: int = 0
) -> Source:
    """The TFDS image-classification set of this name.

    A set that is not prepared yet is downloaded and prepared. Once loaded it is kept for later runs, which then import
    no TensorFlow.

    Args:
        dataset: as in "mnist" or "mnist:3.0.1".
        known: names of the data sets that need no TFDS, for the message.
        splits: what to train and to test on, as TFDS writes it: ("train[:80%]", "train[80%:]").
        image_size: side that images of different sizes are brought to; 0: they have one size.

    Raises:
        UserError: there is no such set, it can be neither found nor downloaded, it is no classification set of images
            of one size, or it has no such splits.
    """
    if not re.fullmatch(r"\w+(/[\w.-]*\w)?(:\d+\.\d+\.\d+)?", dataset, re.ASCII):
        right = "a name, as in 'mnist' or 'mnist:3.0.1', 'folder:PATH' or 'arrays:FILE.npz'"
        raise UserError(f"dataset = {dataset!r}: must be {right}")
    origins = [pathlib.Path(_tfds_folder(), re.split("[:/]", dataset)[0])]
    which = "" if splits == SPLITS else f" of {' and '.join(splits)}"  # both: together they have been checked
    caches = {split: CachedArrays(f"{dataset}/{split}{which}", origins, CODE) for split in SPLITS}
    label_caches = {split: CachedArrays(f"{dataset}/labels of {split}{which}", origins, CODE) for split in SPLITS}
    if kept := _read_kept(caches):
        _check_image_size(dataset, kept.image_shape, image_size)
        return kept
    return _tfds_source(dataset, known, splits, image_size, caches, label_caches)


def _read_kept(caches: Mapping[str, CachedArrays]) -> Source | None:
    """The data set as an earlier run kept it, or None."""
    splits = {}
    for split, cache in caches.items():
        if (found := cache.read()) is None:
            return None
        arrays, fields = found
        splits[split] = Images(**arrays)
    tuples = {name: tuple(fields[name]) for name in ("image_shape", "class_names")}  # lists in JSON
    return Source(**fields | tuples, load=splits.__getitem__)


def _keep(source: Source, caches: Mapping[str, CachedArrays]) -> Source:
    """The same data set, of which each split is kept when it is loaded."""
    fields = {name: value for name, value in vars(source).items() if name != "load"}

    def load(split: str) -> Images:
        images = source.load_checked(split)
        caches[split].write(vars(images), fields)
        return images

    return dataclasses.replace(source, load=load)


def _check_image_size(dataset: str, shape: tuple[int | None, ...], image_size: int) -> None:
    if image_size and None not in shape:
        raise UserError(f"image_size = {image_size}: the images of {dataset!r} have one size, {shape}; leave it at 0")
    if None in shape and not image_size:
        raise UserError(
            f"dataset = {dataset!r} has images of different sizes, {shape}; --config.image_size=224 makes all of them "
            "224x224, or any other number"
        )


def _tfds_folder() -> str:
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _tfds_source(
    dataset: str,
    known: Collection[str],
    splits: tuple[str, str],
    image_size: int,
    caches: Mapping[str, CachedArrays],
    label_caches: Mapping[str, CachedArrays],
) -> Source:
    if has_wildcards(pathlib.Path(folder := _tfds_folder())):
        raise UserError(
            f"dataset = {dataset!r}: TFDS takes *, ? and [ in {folder} for patterns and finds nothing there. Use a "
            f"link to it: ln -s {shlex.quote(folder)} data && export TFDS_DATA_DIR=data"
        )
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise UserError(f"dataset = {dataset!r} is read with TensorFlow Datasets: {missing_package(error)}") from error

    builder = _find_builder(dataset, known)
    _prepare(dataset, builder)
    info = builder.info
    repair = f"Remove it and prepare it again: rm -r {builder.data_path} && tfds build {dataset}"  # this version only
    _check_splits(dataset, builder, splits)
    image_key, label_key = info.supervised_keys or ("image", "label")
    features = dict(info.features.items())
    if not isinstance(features.get(image_key), tfds.features.Image) or not isinstance(
        features.get(label_key), tfds.features.ClassLabel
    ):
        raise UserError(f"dataset = {dataset!r} is no image classification set: its features are {features}")
    shape = features[image_key].shape
    _check_image_size(dataset, shape, image_size)
    num_train, num_test = (info.splits[split].num_examples for split in splits)
    names, num_classes = features[label_key].names, features[label_key].num_classes
    named_classes = () if names == [str(label) for label in range(num_classes)] else tuple(names)
    named = dict(zip(SPLITS, splits, strict=True))
    is_large = None in shape or (num_train + num_test) * math.prod(shape) > LARGE
    if is_large or info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
        if (dtype := np.dtype(features[image_key].np_dtype)) != np.uint8:
            raise UserError(f"dataset = {dataset!r} has images of {dtype}; expected uint8, from 0 to 255")
        whole = (image_size, image_size, 3) if image_size else shape

        def open_split(split: str) -> Images:
            try:
                records = _records(builder, named[split])
                if kept := label_caches[split].read():
                    label = kept[0]["label"]
                else:
                    with under_way(f"Reading the labels of {named[split]}"):
                        label = read_labels(records, label_key)
                    label_caches[split].write({"label": label}, {})
            except (OSError, ValueError) as error:
                found = f"{builder.data_path}, split {named[split]!r}, cannot be read: {error}"
                raise source.error(found, damaged=not isinstance(error, PermissionError)) from error
            rows, mark = np.arange(len(records)), label_caches[split].prefix.encode()
            return Images(RecordImages(records, rows, image_key, whole, image_size > 0, mark), label)

        source = Source(dataset, whole, num_classes, num_train, open_split, repair, named_classes)
        return source

    tf = import_tensorflow(dataset)
    # Without it, tuning takes longer than decoding; more does not help.
    read_config = tfds.ReadConfig(num_parallel_calls_for_decode=32)

    def load(split: str) -> Images:
        # A shuffled reading order would make the position of an image, and with it every batch, depend on the run.
        try:
            images = builder.as_dataset(split=named[split], batch_size=-1, shuffle_files=False, read_config=read_config)
            arrays = tfds.as_numpy(images)
        except tf.errors.OpError as error:
            reason = re.sub(r"\{\{.*?\}\}|\[Op:.*?\].*", "", error.message).strip().partition("\n")[0].rstrip(".")
            damaged = not isinstance(error, (tf.errors.PermissionDeniedError, tf.errors.ResourceExhaustedError))
            found = f"{builder.data_path}, split {named[split]!r}, cannot be read: {reason}"
            raise source.error(found, damaged=damaged) from error
        return Images(arrays[image_key], arrays[label_key].astype(np.int32))

    source = Source(dataset, shape, num_classes, num_train, load, repair, named_classes)
    return _keep(source, caches)


def _records(builder: Any, split: str) -> Any:
    """The records of a split, for random access."""
    if builder.info.file_format.value == "array_record":
        return builder.as_data_source(split).data_source
    files = builder.info.splits[split].file_instructions
    return TFRecords.find([(os.fspath(file.filename), file.skip, file.skip + file.take) for file in files])


def _check_splits(dataset: str, builder: Any, splits: tuple[str, str]) -> None:
    """Checks that both splits have images, and none in common."""
    known = builder.info.splits
    has = ", ".join(f"{name} with {known[name].num_examples} images" for name in known) or "no splits"
    first = next(iter(known), "train")
    right = f"config.splits names others, as in --config.splits=\"('{first}[:80%]', '{first}[80%:]')\""
    spans = []
    for split in splits:
        try:
            found = "" if known[split].num_examples > 0 else "no images"
        except (ValueError, KeyError) as error:
            found = str(error).splitlines()[0].rstrip(".")
        if found:
            message = f"dataset = {dataset!r}: split {split!r}: {found}; {builder.data_path} has {has}"
            raise UserError(f"{message}. {right}")
        files = known[split].file_instructions
        spans.append([(file.filename, file.skip, file.skip + file.take) for file in files])
    common = sum(
        max(0, min(end, other_end) - max(start, other_start))
        for name, start, end in spans[0]
        for other_name, other_start, other_end in spans[1]
        if name == other_name
    )
    if common:
        raise UserError(
            f"splits = {splits}: {common} images are in both, and what is trained on tests nothing. {right}"
        )


def _find_builder(dataset: str, known: Collection[str]) -> Any:
    """TFDS's builder of this set; see `find_tfds_source` for the arguments."""
    import tensorflow_datasets as tfds
    from google.protobuf import json_format
    from tensorflow_datasets.core import dataset_info

    data_dir = _tfds_folder()
    name, _, version = dataset.partition(":")
    folder = pathlib.Path(data_dir, name, version)
    # What TFDS leaves of a data set, whole or not; anything else there is not ours to have removed.
    left = [path.name for path in pathlib.Path(data_dir, name).glob("*")] if re.fullmatch(r"\w+", name) else []
    versions = sorted(path for path in left if re.fullmatch(r"\d+\.\d+\.\d+", path))
    prepared = version in versions or (not version and (versions or any(p.startswith("incomplete.") for p in left)))
    repair = f"Remove it and prepare it again: rm -r {folder} && tfds build {dataset}"
    try:
        return tfds.builder(dataset, data_dir=data_dir)
    except ImportError as error:
        raise UserError(f"dataset = {dataset!r} needs a package that is not installed: {error}") from error
    except (json_format.ParseError, json.JSONDecodeError, dataset_info.DatasetInfoFileError) as error:
        raise UserError(f"dataset = {dataset!r}: {folder} is damaged: {str(error).rstrip('.')}. {repair}") from error
    except tfds.core.DatasetNotFoundError as error:
        if prepared:
            raise UserError(f"dataset = {dataset!r}: {folder} is damaged or half prepared. {repair}") from error
        if versions:
            raise UserError(
                f"dataset = {dataset!r}: {folder.parent} has {', '.join(versions)} and no version {version}. "
                f"Without :{version} the newest is taken"
            ) from error
        close = difflib.get_close_matches(dataset, [*known, *tfds.list_builders(with_community_datasets=False)], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see https://www.tensorflow.org/datasets/catalog"
        raise UserError(f"dataset = {dataset!r}: neither {', '.join(known)} nor a TFDS data set; {hint}") from error
    except (ValueError, AssertionError) as error:  # such as a version that does not exist
        raise UserError(f"dataset = {dataset!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def _prepare(dataset: str, builder: Any) -> None:
    """Downloads and prepares the data set if that has not been done."""
    if builder.is_prepared():
        return
    advice = (
        f"dataset = {dataset!r} is not prepared in {builder.data_path} and cannot be downloaded ({{}}). Set "
        f"TFDS_DATA_DIR to a folder that holds it, or prepare it where there is a network: tfds build {dataset}"
    )
    import requests

    try:
        # TFDS repeats a failing download for more than three minutes; one look at the server shows whether it can work.
        for url in list(builder.url_infos)[:1]:
            requests.head(url, timeout=10)
    except requests.RequestException as error:
        raise UserError(advice.format("no network")) from error
    import_tensorflow(dataset)
    try:
        with under_way(f"Preparing {dataset} in {builder.data_path}"):
            builder.download_and_prepare()
    except Exception as error:  # TFDS lets through whatever its many download and parsing libraries raise.
        raise UserError(advice.format(error)) from error


def import_tensorflow(dataset: str = "") -> Any:
    """Imports TensorFlow, which prepares and reads data sets, such that it disturbs nothing.

    It would reserve the memory of every accelerator that it sees, and greet with pages of hints.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # It would import Keras as well, which takes as long as all the rest of it, and which nothing here needs.
    hide_keras = "keras" not in sys.modules
    if hide_keras:
        sys.modules["keras"] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        with under_way("Importing TensorFlow, which reads data sets"):
            import tensorflow as tf
    except ModuleNotFoundError as error:
        raise UserError(f"dataset = {dataset!r} is read with TensorFlow: {missing_package(error)}") from error
    finally:
        if hide_keras:
            del sys.modules["keras"]
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf
