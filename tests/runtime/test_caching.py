import os
import stat
import subprocess

import numpy as np
import pytest
from conftest import ROOT, command
from jax._src.compilation_cache import compress_executable

from runtime import caching
from runtime.caching import CachedArrays
from runtime.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """What is stored of a set whose files are in `origin`, in a cache of its own."""
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    (tmp_path / "origin" / "version").mkdir(parents=True)
    (tmp_path / "origin" / "version" / "file").write_bytes(b"12345")
    return CachedArrays("some/set:1.0.0", [tmp_path / "origin"])


def stored(tmp_path):
    [path] = (tmp_path / "cache" / "data").iterdir()
    return path


def test_arrays_and_values_come_back_as_they_were_stored(cache, tmp_path):
    assert cache.read() is None
    arrays = {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "label": np.array([1, 2], np.int32)}
    cache.write(arrays, {"name": "ä", "shape": [3, 4]})
    found, values = cache.read()
    assert values == {"name": "ä", "shape": [3, 4]}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    cache.write(arrays, {})
    assert cache.read()[1] == {}
    stored(tmp_path)  # which is one file


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_cache_with_one_flipped_bit_or_a_missing_byte_is_not_used(cache, tmp_path, position, capsys):
    cache.write({"label": np.arange(1000)}, {"num": 1})
    content = bytearray(stored(tmp_path).read_bytes())
    content[position] ^= 1
    stored(tmp_path).write_bytes(content)
    assert cache.read() is None
    assert f"{stored(tmp_path)} is damaged" in capsys.readouterr().out
    content[position] ^= 1
    stored(tmp_path).write_bytes(content[:-1])
    assert cache.read() is None
    stored(tmp_path).write_bytes(content)
    assert cache.read()[1] == {"num": 1}


def test_other_files_are_another_data_set(cache, tmp_path):
    def found(name="some/set:1.0.0"):
        return CachedArrays(name, [tmp_path / "origin"]).read() is not None

    file = tmp_path / "origin" / "version" / "file"
    before = file.stat()
    file.with_name("link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked").write_bytes(b"12345")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")

    def change_a_byte_and_keep_size_and_date():
        file.write_bytes(b"12354")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    for change in (
        change_a_byte_and_keep_size_and_date,
        lambda: (tmp_path / "elsewhere" / "linked").write_bytes(b"54321"),
        lambda: os.utime(file, ns=(0, 0)),
        lambda: file.write_bytes(b"123456"),
        lambda: file.rename(file.with_name("other")),
    ):
        CachedArrays("some/set:1.0.0", [tmp_path / "origin"]).write({"label": np.arange(10)}, {})
        assert found()
        assert not found("other")
        change()
        assert not found()


def test_what_cannot_be_read_is_made_again_and_what_cannot_be_written_is_said(cache, tmp_path, capsys):
    cache.write({"label": np.arange(10)}, {})
    path = stored(tmp_path)
    path.unlink()
    path.mkdir()
    assert cache.read() is None
    assert f"{path} is not readable" in capsys.readouterr().out
    cache.write({"label": np.arange(10)}, {})
    assert "some/set:1.0.0 is not kept for later runs" in capsys.readouterr().out
    assert stored(tmp_path) == path  # and nothing half written beside it


def test_of_files_that_are_not_there_nothing_is_kept(cache, tmp_path):
    for name, origin in (("set", "nowhere"), ("", "origin"), ("../set", "origin")):
        missing = CachedArrays(name, [tmp_path / origin])
        missing.write({"label": np.arange(10)}, {})
        assert missing.read() is None
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_the_cache_is_the_users_alone_and_one_that_others_can_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    for folder in ("cache", "cache/compiled", "cache/data"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700
    (tmp_path / "cache" / "compiled").chmod(0o770)
    with pytest.raises(UserError, match=r"compiled belongs to user .* mode 770.*Remove it"):
        caching.enable(tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache_dir=.*file cannot be used"):
        caching.enable(tmp_path / "file")


def test_nothing_is_cached_unless_it_is_asked_for(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_directory", None)
    cache.write({"label": np.arange(10)}, {})
    assert cache.read() is None
    assert CachedArrays("set", [tmp_path / "origin"]).read() is None
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_compiled_programs_that_are_not_whole_are_removed_and_each_is_read_once(tmp_path):
    whole = compress_executable(np.random.default_rng(0).bytes(10_000))
    for name, content in {"whole": whole, "half": whole[:5000], "cut": whole[:-1], "empty": b""}.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    (tmp_path / "other").write_bytes(whole[:5000])
    caching._remove_torn(tmp_path)
    looked = tmp_path / "looked_through"
    assert {*tmp_path.iterdir()} == {tmp_path / "whole-cache", tmp_path / "other", looked}
    for name, apart in (("new", 0.0), ("old", -10.0)):
        (tmp_path / f"{name}-cache").write_bytes(whole[:5000])
        os.utime(tmp_path / f"{name}-cache", (0, looked.stat().st_mtime + apart))
    caching._remove_torn(tmp_path)
    assert {*tmp_path.glob("*-cache")} == {tmp_path / "whole-cache", tmp_path / "old-cache"}


# Says at the end of a process what it has needed.
WATCH = """
import atexit, sys, jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
def tell():
    assert "/jax/compilation_cache/cache_hits" in events or "/jax/compilation_cache/cache_misses" in events
    print("Compiled:", "/jax/compilation_cache/cache_misses" in events)
    print("TensorFlow:", "tensorflow" in sys.modules)
atexit.register(tell)
"""


@pytest.mark.slow
def test_a_second_run_imports_no_tensorflow_compiles_nothing_and_computes_the_same(made_data, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"TFDS_DATA_DIR": str(made_data), "PYTHONPATH": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    cache = tmp_path / "cache"

    def run(name, *flags):
        fields = "--config.dataset=hundred", "--config.duration=5 steps"
        arguments = command(f"--workdir={tmp_path / name}", f"--cache_dir={cache}", *fields, *flags)
        result = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "cache" not in result.stderr
        return result.stdout, (tmp_path / name / "metrics.jsonl").read_bytes()

    first, metrics = run("first")
    assert "TensorFlow: True" in first
    assert f"are kept in {cache}" in first
    assert "Compiled: True" in first
    second, again = run("second")
    assert "TensorFlow: False" in second
    assert again == metrics
    assert "Compiled: False" in second

    damaged, _ = (cache / "data").iterdir()  # training and test images
    damaged.write_bytes(damaged.read_bytes()[:-1])
    torn = max((cache / "compiled").glob("*-cache"), key=lambda path: path.stat().st_size)
    size = torn.stat().st_size
    torn.write_bytes(torn.read_bytes()[: size // 2])  # by a process that was killed
    third, again = run("third")
    assert "Compiled: True" in third
    assert torn.stat().st_size > 0.9 * size
    assert "is damaged and will be made again" in third
    assert "TensorFlow: True" in third
    assert again == metrics
