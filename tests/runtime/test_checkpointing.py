import json
import logging
import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import create_experiment, digits_config, read_metrics

import train
from runtime import checkpointing, run_folder
from runtime.checkpointing import Checkpoints, find_origin
from runtime.errors import UserError
from runtime.metric_writing import Written
from runtime.stored import Best, DamagedError, Record, Stored, find_checkpoint, is_finished, list_stored
from tools import finished

# Every kind of file in a checkpoint. Of some there are several, with digests as their names.
KINDS = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    "sha256.json",
    "record/commit_success.txt",
    "record/metadata",
    *(
        f"{item}/{name}"
        for item in ("state", "sums")
        for name in (
            "_METADATA",
            "_sharding",
            "array_metadatas/process_0",
            "commit_success.txt",
            "d/*",
            "manifest.ocdbt",
            "ocdbt.process_0/d/*",
            "ocdbt.process_0/manifest.ocdbt",
        )
    ),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints at steps 10, 15 and 20, and snapshots."""
    workdir = tmp_path_factory.mktemp("run")
    config = digits_config(checkpoint_every="5 steps", eval_every="100%", snapshot_every="10 steps", best_curve="raw")
    train.train_and_evaluate(config, workdir)
    kept = {path.relative_to(workdir).as_posix() for path in workdir.glob("*s/*") if path.name.isdigit()}
    assert kept == {"checkpoints/10", "checkpoints/15", "checkpoints/20", "snapshots/10", "snapshots/20"}
    return config, workdir


@pytest.fixture
def copy(run, tmp_path):
    config, workdir = run
    return config.copy_and_resolve_references(), shutil.copytree(workdir, tmp_path / "copy")


@pytest.fixture(scope="module")
def like():
    """The state that such a run creates, of which shapes and dtypes count."""
    return create_experiment(digits_config()).state


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_kind_of_file_in_a_checkpoint_is_known_here(run):
    _, workdir = run
    folder = workdir / "checkpoints" / "20"
    known = {path for kind in KINDS for path in folder.glob(kind)}
    assert {path for path in folder.rglob("*") if path.is_file()} == known


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, flip, pathlib.Path.unlink])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_it_used(copy, kind, damage, capsys, like):
    _, workdir = copy
    newest = workdir / "checkpoints" / "20"
    damage(next(newest.glob(kind)))
    left = contents(newest)
    with Checkpoints(workdir, 1, like) as checkpoints:
        assert checkpoints.latest.record.step == 15
        assert newest.exists()
        checkpoints.discard_newer()
    said = capsys.readouterr().out
    assert f"{newest} is damaged" in said
    assert kind.partition("*")[0] in said
    [aside] = (workdir / "damaged").iterdir()
    assert str(aside) in said
    assert not newest.exists()
    assert contents(aside) == left


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(copy):
    _, workdir = copy
    folder = workdir / "checkpoints" / "20"
    rng = np.random.default_rng(0)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for position in rng.integers(len(whole), size=20):
            broken = bytearray(whole)
            broken[position] ^= 1 << rng.integers(8)
            path.write_bytes(broken)
            with pytest.raises(DamagedError):
                Stored.read(folder)
        path.write_bytes(whole)
    Stored.read(folder)


@pytest.mark.parametrize("moved", ["5000", "020"])
def test_a_checkpoint_in_a_folder_of_another_step_is_damaged(copy, moved, like):
    _, workdir = copy
    (workdir / "checkpoints" / "20").rename(workdir / "checkpoints" / moved)
    with Checkpoints(workdir, 1, like) as checkpoints:
        assert checkpoints.latest.record.step == 15
        checkpoints.discard_newer()
    assert [path.name.partition("-")[0] for path in (workdir / "damaged").iterdir()] == [moved]


def test_what_is_no_checkpoint_is_left_alone(copy):
    config, workdir = copy
    before, _ = train.train_and_evaluate(config, workdir)
    for name in ("checkpoints/²", "checkpoints/7.bak", "checkpoints/x.partial", "checkpoints/20/._x", "snapshots/y"):
        (workdir / name).mkdir()
    for name in ("checkpoints/5000", "checkpoints/20.partial", "checkpoints/20/.DS_Store"):
        (workdir / name).touch()
    after, _ = train.train_and_evaluate(config, workdir)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (x == y).all()


def test_files_of_others_in_a_new_workdir_stay(tmp_path):
    (tmp_path / "tensorboard" / "raw").mkdir(parents=True)
    notes = [tmp_path / "notes.txt", tmp_path / "tensorboard" / "notes.txt", tmp_path / "tensorboard" / "raw" / "notes"]
    for path in notes:
        path.write_text("mine")
    train.train_and_evaluate(digits_config(), tmp_path)
    assert [path.read_text() for path in notes] == ["mine"] * 3


# While orbax writes, and while the digests are made.
@pytest.mark.parametrize("name", ["20.partial.orbax-checkpoint-tmp", "20.partial"])
def test_an_unfinished_save_is_named_and_removed(copy, like, name, capsys):
    _, workdir = copy
    newest = workdir / "checkpoints" / "20"
    unfinished = newest.rename(newest.with_name(name))
    with Checkpoints(workdir, 1, like) as checkpoints:
        assert checkpoints.record.step == 15
        checkpoints.discard_newer()
    assert f"{unfinished} was not finished and is removed" in capsys.readouterr().out
    assert not unfinished.exists()


# In the background, while orbax writes and while the digests are made.
@pytest.mark.parametrize(
    "step", [(ocp.CompositeCheckpointHandler, "finalize"), (checkpointing, "compute_digests")], ids=["orbax", "digests"]
)
def test_a_checkpoint_that_cannot_be_written_is_said_at_the_next_and_none_is_lost(copy, step, monkeypatch, caplog):
    config, workdir = copy
    before = contents(workdir)
    state = create_experiment(config, workdir).state
    monkeypatch.setattr(*step, broken)
    with Checkpoints(workdir, 1, state) as checkpoints:
        checkpoints.save(state.replace(step=jnp.int32(25)), state.rejected, None, Written())
        with pytest.raises(UserError, match=r"could not be saved: .*broken disk.* the same command continues"):
            checkpoints.save(state.replace(step=jnp.int32(30)), state.rejected, None, Written())
    assert before.items() <= contents(workdir).items()
    with Checkpoints(workdir, 1, state) as checkpoints:
        assert checkpoints.record.step == 20
        checkpoints.discard_newer()
    assert contents(workdir) == before
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]  # no traceback of orbax


def broken(*_, **__):
    raise OSError("broken disk")


def test_a_folder_that_cannot_be_made_ends_the_run_at_once_with_nothing_left_to_wait_for(copy, caplog):
    config, workdir = copy
    state = create_experiment(config, workdir).state
    shutil.rmtree(workdir / "snapshots")
    (workdir / "snapshots").touch()
    error = pytest.raises(UserError, match=r"could not be saved: .*Not a directory")
    with error, Checkpoints(workdir, 1, state) as checkpoints:
        checkpoints.save_snapshot(state)
    assert not [thread for thread in threading.enumerate() if type(thread).__module__.startswith("orbax")]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_after_damage_a_run_ends_with_the_same_bits(copy):
    config, workdir = copy
    before = contents(workdir)
    state = find_checkpoint(workdir, "latest").restore_state(create_experiment(config, workdir).state)
    flip(next((workdir / "checkpoints" / "20" / "state").glob("d/*")))
    again, _ = train.train_and_evaluate(config, workdir)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert (x == y).all()
    for name in ("metrics.jsonl", "config.json", "averages.json"):
        assert contents(workdir)[pathlib.Path(name)] == before[pathlib.Path(name)]


def test_where_no_checkpoint_is_sound_nothing_is_done_and_each_is_named(copy):
    config, workdir = copy
    folders = [workdir / "checkpoints" / step for step in ("10", "15", "20")]
    for folder in folders:
        flip(folder / "state" / "manifest.ocdbt")
    before = contents(workdir)
    with pytest.raises(UserError, match="has no checkpoint to go on from") as error:
        train.train_and_evaluate(config, workdir)
    for folder in folders:
        assert f"{folder} is damaged: state/manifest.ocdbt is not what sha256.json says" in str(error.value)
    assert {**contents(workdir), pathlib.Path("lock"): b""} == {**before, pathlib.Path("lock"): b""}


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("checkpoints", "has metrics or snapshots of a run and no checkpoint"),
        (("checkpoints", "metrics.jsonl"), "has metrics or snapshots of a run and no checkpoint"),
        ("config.json", "has checkpoints and no config.json"),
        ("metrics.jsonl", "bytes of metrics.jsonl, which has 0"),
    ],
)
def test_what_a_run_has_lost_does_not_make_it_start_again(copy, lost, message):
    config, workdir = copy
    for path in (workdir / name for name in ([lost] if isinstance(lost, str) else lost)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(workdir)
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config, workdir)
    assert {**contents(workdir), pathlib.Path("lock"): b""} == {**before, pathlib.Path("lock"): b""}


def test_clocks_that_are_torn_go_on_after_their_last_whole_line(copy):
    config, workdir = copy
    times = (workdir / "timing.jsonl").read_bytes().splitlines(keepends=True)
    (workdir / "timing.jsonl").write_bytes(b"".join(times[:2]) + times[2][:9])
    config.duration = "25 steps"
    train.train_and_evaluate(config, workdir, config_change="accept")
    steps = [json.loads(line)["step"] for line in (workdir / "timing.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 25]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"step": 5, "curve": "train", "lo\n', "line 2, is damaged"),
        (b'{"curve": "train"}\n', "line 2, is damaged"),
        (b"5\n", "line 2, is damaged"),
        (b'{"step": 5, "curve": "../../../elsewhere"}\n', "no name of a curve"),
        (b'{"step": 1e999, "curve": "train"}\n', "line 2, is damaged"),
        (b'{"step": 5, "curve": "train", "loss": "low"}\n', "line 2, is damaged"),
    ],
)
def test_a_damaged_line_in_the_metrics_is_named_and_no_curve_leaves_the_workdir(copy, line, message):
    config, workdir = copy
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = line.rstrip(b"\n").ljust(len(lines[1]) - 1) + b"\n"
    (workdir / "metrics.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config, workdir)
    assert not (workdir.parent.parent / "elsewhere").exists()


def test_evaluation_uses_the_checkpoint_before_a_damaged_one_says_so_and_changes_nothing(copy, capsys):
    config, workdir = copy
    flip(workdir / "checkpoints" / "20" / "state" / "manifest.ocdbt")
    before = contents(workdir)
    finished.evaluate_checkpoint(config, workdir)
    said = capsys.readouterr().out
    assert f"Note: {workdir / 'checkpoints' / '20'} is damaged" in said
    assert "latest checkpoint, step 15" in said
    with pytest.raises(UserError, match="holds no best checkpoint"):  # which was that of step 20
        finished.evaluate_checkpoint(config, workdir, which="best")
    assert contents(workdir) == before


def test_damaged_snapshots_are_left_out_by_name(copy, capsys):
    _, workdir = copy
    folder = workdir / "snapshots" / "10"
    flip(next(folder.glob("state/d/*")))
    assert [stored.record.step for stored in list_stored(workdir)] == [10, 15, 20]  # 10: the checkpoint
    shutil.rmtree(workdir / "checkpoints" / "10")
    assert [stored.record.step for stored in list_stored(workdir)] == [15, 20]
    assert f"Note: {folder} is damaged" in capsys.readouterr().out


def test_before_the_first_step_everything_that_a_run_starts_from_is_its_own(tmp_path, run):
    """So another run's weights, too, are the same ones after a kill, whatever became of that run."""
    _, other = run
    config = digits_config(init_from=str(other), init_weights="ema")
    train.train_and_evaluate(config, tmp_path)
    first = Stored.read(tmp_path / "checkpoints" / "0")
    assert first.record.writer.lengths == {"metrics.jsonl": 0, "timing.jsonl": 0}
    like = create_experiment(config, tmp_path).state
    params = find_origin(tmp_path / "new", config, like).begin(like).params
    for x, y in zip(jax.tree.leaves(first.restore_state(like).params), jax.tree.leaves(params), strict=True):
        assert (x == y).all()


def test_a_run_whose_workdir_is_in_use_is_refused_before_it_looks_at_checkpoints(copy):
    config, workdir = copy
    flip(workdir / "checkpoints" / "20" / "state" / "manifest.ocdbt")
    before = contents(workdir)
    with run_folder.hold(workdir), pytest.raises(UserError, match="in use"):
        train.train_and_evaluate(config, workdir)
    assert contents(workdir).keys() == before.keys()


def test_a_workdir_that_vanishes_ends_the_run_at_the_next_line(tmp_path, monkeypatch):
    workdir, evaluate = tmp_path / "run", train.evaluate

    def move_away(*args, **kwargs):
        if workdir.exists():
            workdir.rename(tmp_path / "moved")
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(train, "evaluate", move_away)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        train.train_and_evaluate(digits_config(), workdir)
    assert [line["step"] for line in read_metrics(tmp_path / "moved")] == [5, 10]
    assert not workdir.exists()


def test_records_come_back_as_they_were():
    record = Record(3, Best(2, "raw", "loss", 0.5), Written(2, {"metrics.jsonl": 7}, {"eval_seconds": 0.25}))
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_run_is_finished_once_its_last_checkpoint_and_all_its_metrics_are_there(copy):
    _, workdir = copy
    assert is_finished(workdir, 20)
    assert not is_finished(workdir, 40)
    assert not is_finished(workdir / "nowhere", 20)
    metrics = workdir / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-1])
    assert not is_finished(workdir, 20)
    metrics.unlink()
    assert not is_finished(workdir, 20)
