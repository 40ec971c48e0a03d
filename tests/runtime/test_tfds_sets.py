import dataclasses

import numpy as np
import pytest

import input_pipeline
from runtime import caching, tfds_sets
from runtime.errors import UserError


@pytest.mark.parametrize(
    "name", ["", "..", "../mnist", "/mnist", "mnist/..", "mnist/../x", "mnist:3", "mnist:latest", "hf:mnist", "a b"]
)
def test_what_is_no_name_of_a_data_set_is_refused_before_anything_is_looked_for(name, monkeypatch):
    monkeypatch.delattr(tfds_sets, "CachedArrays")
    with pytest.raises(UserError, match="must be a name") as error:
        input_pipeline.find_source(name)
    assert str(error.value) == f"dataset = {name!r}: must be a name, as in 'mnist' or 'mnist:3.0.1'"


@pytest.mark.parametrize("name", ["data [1]", "data*", "data?"])
def test_a_folder_whose_name_tfds_takes_for_a_pattern_is_refused_before_anything_is_downloaded(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / name))
    with pytest.raises(UserError) as error:
        input_pipeline.find_source("mnist")
    assert f"ln -s '{tmp_path / name}' data && export TFDS_DATA_DIR=data" in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damaged", ["train", "test"])
def test_a_decoded_set_is_read_again_without_tfds_as_long_as_all_of_it_is_whole(
    damaged, made_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    decoded = []
    read_tfds = tfds_sets._tfds_source

    def watched(dataset, known):
        source = read_tfds(dataset, known)
        return dataclasses.replace(source, load=lambda split: decoded.append(split) or source.load(split))

    monkeypatch.setattr(tfds_sets, "_tfds_source", watched)

    def load():
        source = input_pipeline.find_source("hundred")
        return dataclasses.replace(source, load=None), *(source.load_checked(split) for split in ("train", "test"))

    first = load()
    assert decoded == ["train", "test"]
    again = load()
    assert decoded == ["train", "test"]
    assert again[0] == first[0]
    for images, expected in zip(again[1:], first[1:], strict=True):
        np.testing.assert_array_equal(images.image, expected.image)
        np.testing.assert_array_equal(images.label, expected.label)

    [file] = (tmp_path / "cache" / "data").glob(f"hundred_{damaged}-*")
    file.write_bytes(file.read_bytes()[:-1])
    load()
    assert decoded == ["train", "test"] * 2
    assert f"{file} is damaged" in capsys.readouterr().out
