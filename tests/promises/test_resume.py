import itertools
import json
import math
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    ROOT,
    command,
    copy,
    create_dispatcher,
    create_experiment,
    digits_config,
    read_metrics,
    run_main,
)

import averaging
import train
from configs import default
from runtime import average_table
from runtime.checkpointing import Checkpoints
from runtime.errors import UserError
from runtime.metric_writing import CLOCKS, Written
from runtime.stored import Stored, find_checkpoint, list_stored
from tools import finished

FLAGS = (
    "--config.duration=60 steps",
    "--config.log_every=7 steps",  # logging, evaluating and saving never coincide before the end
    "--config.eval_every=11 steps",
    "--config.checkpoint_every=13 steps",
    "--config.model.name=cnn",
    "--config.model.batch_norm=True",
    "--config.model.dropout=0.25",
    "--config.augment.flip=True",
    "--config.augment.mixup=1.0",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=0.01",
    "--config.optimizer.gradient_noise=0.01",
    "--config.snapshot_every=5 steps",
)


def assert_same_leaves(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def saved_state(workdir, config):
    """The state in the latest checkpoint."""
    state = create_experiment(config, workdir, "accept").state
    return find_checkpoint(workdir, "latest").restore_state(state)


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_dispatch", [1, 5])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path, steps_per_dispatch):
    """Real processes, each killed right after it printed a line, while training and saving go on in the background."""
    interrupted, uninterrupted = tmp_path / "interrupted", tmp_path / "uninterrupted"
    same_flags = (*FLAGS, f"--config.steps_per_dispatch={steps_per_dispatch}")
    flags = (f"--workdir={interrupted}", *same_flags)
    for seen in ("Compiling the training step: done", "step 22/60", "step 44/60"):
        with subprocess.Popen(command(*flags), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith(seen):
                    process.kill()
                    break
            else:
                pytest.fail(f"the run ended before it printed {seen!r}")
        assert process.returncode == -signal.SIGKILL
    with ThreadPoolExecutor() as pool:  # side by side, to save time
        runs = pool.map(lambda workdir: run_main(f"--workdir={workdir}", *same_flags), (interrupted, uninterrupted))
    for result in runs:
        assert result.returncode == 0, result.stderr
    assert (interrupted / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    logged, evaluated = ({line["step"] for line in read_metrics(interrupted, curve)} for curve in ("train", "raw"))
    assert logged & evaluated == {60}
    assert best(interrupted) == best(uninterrupted)
    snapshots = [list_stored(workdir) for workdir in (interrupted, uninterrupted)]
    assert len(snapshots[0]) >= 12
    optimizer = {"optimizer__name": "adamw", "optimizer__gradient_noise": 0.01}
    config = digits_config(model__name="cnn", model__hidden_sizes=(256, 256), model__batch_norm=True, **optimizer)
    state = saved_state(uninterrupted, config)
    assert_same_leaves(saved_state(interrupted, config), state)
    for ours, theirs in zip(*snapshots, strict=True):
        assert ours.folder.relative_to(interrupted) == theirs.folder.relative_to(uninterrupted)
        assert_same_leaves(*(stored.read_weights("ema", state) for stored in (ours, theirs)))


def best(workdir):
    return find_checkpoint(workdir, "latest").record.best


@pytest.mark.slow
def test_a_checkpoint_is_what_the_state_was_though_its_buffers_were_donated_since(tmp_path):
    """Saving goes on in the background while the next steps overwrite the state."""
    config = digits_config(checkpoint_every="1 steps", keep_checkpoints=50, eval_every="100%", log_every="100%")
    final, _ = train.train_and_evaluate(config, tmp_path)
    assert_same_leaves(saved_state(tmp_path, config), final)
    experiment = create_experiment(config, tmp_path)
    advance = create_dispatcher(experiment)
    state, sums = experiment.state, copy(experiment.sums)
    for step in range(1, 21):
        state, sums, _ = advance(*jax.tree.map(jnp.copy, (state, sums)), experiment.train_data, step - 1, step)
        stored = Stored.read(tmp_path / "checkpoints" / str(step))
        assert stored.record.step == step
        assert_same_leaves(stored.restore_state(experiment.state), state)
        if step < 20:
            assert_same_leaves(stored.restore_sums(sums), sums)


def test_a_metric_whose_count_is_a_sum_of_weights_goes_on_where_it_was(tmp_path, task):
    def weighted(params, state, batch):
        objective, (metrics, updates) = train.loss_fn(params, state, batch)
        weight = jax.nn.sigmoid(batch["label"] - 4.3)
        return objective, (metrics | {"weighted": ((weight * batch["label"]).sum(), weight.sum())}, updates)

    experiment = create_experiment(digits_config(task=task(loss_fn=weighted)))
    advance = create_dispatcher(experiment)
    state, sums, _ = advance(*copy((experiment.state, experiment.sums)), experiment.train_data, 0, 3)
    assert float(sums["weighted"][1]) % 1 > 0
    with Checkpoints(tmp_path, 1, state) as checkpoints:
        checkpoints.save(state, sums, None, Written())
    assert_same_leaves(find_checkpoint(tmp_path, "latest").restore_sums(experiment.sums), sums)


def test_starting_a_finished_run_again_changes_nothing(tmp_path):
    train.train_and_evaluate(digits_config(), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "timing.jsonl", "config.json")}
    train.train_and_evaluate(digits_config(), tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_the_clocks_of_a_run_that_is_killed_go_on_from_its_checkpoint(tmp_path):
    """Steps and clocks rise, a rate is that of the steps since the line before, and all clocks add up to the time."""
    config = digits_config(checkpoint_every="7 steps", keep_checkpoints=9)  # between two lines of metrics
    path, start = tmp_path / "timing.jsonl", {"step": 0, **dict.fromkeys(CLOCKS, 0.0)}
    kept: list[bytes] = []
    for at in (None, 7, 0):  # the checkpoint that is left
        if at is not None:
            kept = [line for line in path.read_bytes().splitlines() if json.loads(line)["step"] <= at]
            for folder in (tmp_path / "checkpoints").iterdir():
                if int(folder.name) > at:
                    shutil.rmtree(folder)
        called = time.time()
        train.train_and_evaluate(config, tmp_path)
        written = path.read_bytes().splitlines()
        assert written[: len(kept)] == kept
        lines = [start, *map(json.loads, written)]
        assert [line["step"] for line in lines] == [0, 5, 7, 10, 14, 15, 20]
        for before, line in itertools.pairwise(lines):
            assert all(before[clock] <= line[clock] for clock in CLOCKS)
            rate = (line["step"] - before["step"]) / (line["train_seconds"] - before["train_seconds"])
            assert line["steps_per_second"] == pytest.approx(rate, rel=1e-6)
        before, first, last = lines[len(kept)], lines[len(kept) + 1], lines[-1]
        assert first["startup_seconds"] > before["startup_seconds"]
        spent = math.fsum(last[clock] - before[clock] for clock in CLOCKS)
        wall = path.stat().st_mtime - called  # until the last line; file systems tell hundredths of a second
        assert wall / 2 < spent < wall + 0.02


def test_a_longer_run_is_the_continued_shorter_one(tmp_path):
    config = digits_config(log_every="5 steps", eval_every="10 steps", checkpoint_every="10 steps")
    train.train_and_evaluate(config, tmp_path / "a")
    config.duration = "40 steps"
    assert_same_leaves(
        train.train_and_evaluate(config, tmp_path / "a")[0], train.train_and_evaluate(config, tmp_path / "b")[0]
    )
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_snapshots_are_kept_and_those_after_the_checkpoint_taken_again(tmp_path):
    config = digits_config(snapshot_every="3 steps", keep_checkpoints=1, best_curve="raw")
    state, _ = train.train_and_evaluate(config, tmp_path)
    stored = list_stored(tmp_path)
    assert [place.record.step for place in stored if place.is_snapshot] == [3, 6, 9, 12, 15, 18, 20]
    last = stored[-1].read_weights("ema", state)
    assert_same_leaves(last, state.weights()["ema"])
    # As if the run had been killed with the checkpoint of step 10 as its last: it goes on with another average.
    train.train_and_evaluate(digits_config(duration="10 steps", snapshot_every="3 steps"), tmp_path / "b")
    shutil.copytree(tmp_path / "snapshots" / "15", tmp_path / "b" / "snapshots" / "15")
    other = digits_config(duration="20 steps", snapshot_every="3 steps", averages__ema__decay=0.5)
    other = train.train_and_evaluate(other, tmp_path / "b")
    stored = {place.record.step: place for place in list_stored(tmp_path / "b") if place.is_snapshot}
    assert list(stored) == [3, 6, 9, 10, 12, 15, 18, 20]
    assert (stored[9].record.counts, stored[15].record.counts) == ({"ema": 9}, {"ema": 5})


@pytest.mark.slow
def test_a_table_says_what_each_average_will_be_and_warns_of_random_weights(tmp_path, capsys):
    config = digits_config(averages__ema__half_life="10%")
    config.averages.soft = default.average("soft_update")
    config.averages.late = default.average("running_mean", start="75%", every="2 steps")
    config.averages.never = default.average("ema", start="150%")
    config.averages.target = default.average("hard_update", period="5 steps")
    train.train_and_evaluate(config, tmp_path)
    said = capsys.readouterr().out
    assert "ema(debias=True, decay=0.707107)" in said
    assert "running_mean(), start=15, every=2" in said
    assert "Warning: 90.5% of the final weight of the average 'soft'" in said  # 0.995**20
    assert "Warning: the average 'never' would be a single iterate" in said
    assert said.count("Warning") == 2
    stored = json.loads((tmp_path / "averages.json").read_text())
    np.testing.assert_allclose(stored["late"]["kernel"], [0] * 16 + [0.5, 0, 0.5, 0])
    assert stored["late"]["effective_number"] == pytest.approx(2)
    # One that joins a trained run has no random weights to keep.
    config.duration = "40 steps"
    config.averages.joined = default.average("soft_update")
    train.train_and_evaluate(config, tmp_path)
    assert "average 'joined' would" not in capsys.readouterr().out
    stored = json.loads((tmp_path / "averages.json").read_text())
    assert (stored["joined"]["num_updates"], stored["soft"]["num_updates"]) == (20, 40)
    assert stored["joined"]["initial_weight"] == pytest.approx(0.995**20)


@pytest.mark.slow
def test_a_long_kernel_is_stored_in_a_thousand_sums_at_most(tmp_path):
    state = create_experiment(digits_config(averages__ema__half_life="10%"), tmp_path).state
    average_table.write(tmp_path, state, 2500, random_start=True)
    stored = json.loads((tmp_path / "averages.json").read_text())["ema"]
    exact = averaging.kernel(state.averages[0].schedule, 2500)[1:]
    assert (stored["iterates_per_bin"], len(stored["kernel"])) == (3, 834)
    np.testing.assert_allclose(stored["kernel"][-2:], [exact[2496:2499].sum(), exact[2499]], rtol=1e-5)  # 6 digits


@pytest.mark.slow
def test_an_accepted_change_of_the_optimizer_takes_effect(tmp_path):
    final = []
    for momentum in (0.9, 0.5):
        train.train_and_evaluate(digits_config(), tmp_path / str(momentum))
        config = digits_config(duration="30 steps", optimizer__momentum=momentum)
        final.append(train.train_and_evaluate(config, tmp_path / str(momentum), config_change="accept")[0])
    assert (final[0].params["Dense_0"]["kernel"] != final[1].params["Dense_0"]["kernel"]).any()


def test_a_checkpoint_of_another_model_is_refused_and_the_workdir_stays_as_it_was(tmp_path):
    train.train_and_evaluate(digits_config(), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"checkpoints/20 does not fit the config's model"):
        train.train_and_evaluate(digits_config(model__hidden_sizes=(16,)), tmp_path, config_change="accept")
    assert (tmp_path / "config.json").read_bytes() == before
    train.train_and_evaluate(digits_config(), tmp_path)


@pytest.mark.slow
def test_an_average_is_scored_as_it_was_saved_and_one_that_was_not_is_not_scored(tmp_path):
    train.train_and_evaluate(digits_config(), tmp_path)
    config = digits_config(averages__ema__decay=0.5)  # which a run that continued would start anew
    config.averages.new = default.average("ema", decay=0.5)
    metrics = finished.evaluate_checkpoint(config, tmp_path)
    assert set(metrics) == {"raw", "ema", "ema-raw"}
    assert metrics["ema"]["loss"] == read_metrics(tmp_path, "ema")[-1]["loss"]
    assert set(finished.evaluate_checkpoint(digits_config(averages__ema__kind="none"), tmp_path)) == {"raw"}


@pytest.mark.slow
@pytest.mark.parametrize("added", [True, False])
def test_a_run_continues_though_its_loss_has_other_metrics_than_before(tmp_path, monkeypatch, added, capsys):
    def with_one_more(params, state, batch, **kwargs):
        objective, (metrics, updates) = train.loss_fn(params, state, batch, **kwargs)
        return objective, (metrics | {"number": (state.step, 1)}, updates)

    def last_means(loss_fn):
        monkeypatch.setitem(train.TASKS, "classification", train.Task(loss_fn=loss_fn))
        train.train_and_evaluate(config, tmp_path)
        return read_metrics(tmp_path, "train")[-1]

    config = digits_config(log_every="10 steps", checkpoint_every="15 steps", keep_checkpoints=3)
    functions = [train.loss_fn, with_one_more]
    before = last_means(functions[not added])
    shutil.rmtree(tmp_path / "checkpoints" / "20")  # it continues at step 15, amid a window
    after = last_means(functions[added])
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)
    assert before.get("number") == (None if added else 14.5)  # over steps 10 .. 19
    assert after.get("number") == (17 if added else None)  # 15 .. 19
    said = "is new: its first mean is over the steps after 15" if added else "is gone"
    assert f"\nThe metric number of the loss {said}\n" in capsys.readouterr().out


def test_a_checkpoint_of_another_format_is_refused_by_name(tmp_path):
    config = digits_config()
    experiment = create_experiment(config, tmp_path)
    with Checkpoints(tmp_path, 1, experiment.state) as checkpoints:
        checkpoints.save(experiment.state, experiment.sums, None, Written())
    # It is said of that, too, which had no digests, and not how the config of that version differs.
    record = tmp_path / "checkpoints" / "0" / "record" / "metadata"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 0}))
    (tmp_path / "checkpoints" / "0" / "sha256.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"checkpoints/0 has format 0; this version reads \d"):
        train.train_and_evaluate(config, tmp_path)


def test_a_torn_last_line_of_the_metrics_is_written_again_by_going_on_from_before_it(tmp_path, capsys):
    train.train_and_evaluate(digits_config(), tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[:-7])
    train.train_and_evaluate(digits_config(), tmp_path)
    assert metrics.read_bytes() == whole
    assert f"goes on after {len(whole)} bytes of metrics.jsonl, which has {len(whole) - 7}" in capsys.readouterr().out
    assert [path.name.partition("-")[0] for path in (tmp_path / "damaged").iterdir()] == ["20"]


def test_metrics_that_no_checkpoint_remembers_are_not_made_up(tmp_path):
    train.train_and_evaluate(digits_config(keep_checkpoints=1, best_curve="raw"), tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no checkpoint to go on from\n.*metrics.jsonl, which has 0\n"):
        train.train_and_evaluate(digits_config(keep_checkpoints=1, best_curve="raw"), tmp_path)
