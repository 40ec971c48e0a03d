"""A task of one's own: data that carry a memory, metrics of whole sets, averages that the loss needs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import check, create_experiment, digits_config, read_metrics, resolve
from flax import linen as nn
from flax import struct

import evaluation
import input_pipeline
import train
from reporting import page, runs, tables
from runtime import intervals, run_config
from runtime.errors import UserError
from runtime.score_metrics import compare, in_groups, summarize
from runtime.stored import find_checkpoint, list_stored
from tools import stored_config
from tools.export import export
from tools.finished import FinishedRun

SIZE = 8  # of the buffer


class Walk(struct.PyTreeNode):
    """Batches of numbers that were drawn lately: a buffer in which each step overwrites one place."""

    def batch(self, state):
        new = jax.random.normal(state.step_key("draw"))
        memory = {"buffer": state.memory["buffer"].at[state.step % SIZE].set(new), "total": state.memory["total"] + 1}
        return {"x": memory["buffer"]}, memory


class Scale(nn.Module):
    start: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        return x * self.param("scale", nn.initializers.constant(self.start), ())


def create_data(config, mesh, *, first: float = 0.0, pause: str = "10%"):
    assert isinstance(pause, int)  # in steps
    memory = {"buffer": first + jnp.arange(float(SIZE)), "total": jnp.int32(0)}
    example = jnp.zeros((1, SIZE)), jnp.zeros((1, SIZE))
    return input_pipeline.Data(Walk(), {"test": jnp.arange(4.0)}, example, memory)


def loss_fn(params, state, batch, *, target: str = "ema", ramp: str = "50%", poison: int = 0):
    teacher = params if target == "none" else state.ema_params[target]
    error = params["scale"] - 1 + 0.1 * (params["scale"] - jax.lax.stop_gradient(teacher["scale"]))
    loss = jnp.mean(jnp.square(error) * (1 + batch["x"] ** 2)) * jnp.minimum(1, (state.step + 1) / ramp)
    loss = jnp.where(state.step == poison, jnp.nan, loss) if poison else loss
    return loss, ({"ramp": (jnp.float32(ramp), 1)}, {})


def evaluate(experiment, weights, split):
    starts = experiment.eval_data[split]
    returns = {name: np.asarray(starts * variables["params"]["scale"]) for name, variables in weights.items()}
    return {name: {"return": (found.mean(), found), "spread": (found.std(), None)} for name, found in returns.items()}


def create_model(example, *, start: float = 0.25):
    return Scale(start)


TASK = {
    "loss_fn": loss_fn,
    "score_fn": None,
    "metrics": {"return": "higher", "spread": "lower"},
    "evaluate": evaluate,
    "create_model": create_model,
    "create_data": create_data,
    "num_train": lambda config: None,
    "needs": lambda loss: () if loss["target"] == "none" else (loss["target"],),
}


@pytest.fixture
def walk(task):
    def config(**overrides):
        steps = {
            "data__pause": "2 steps",
            "model__hidden_sizes": (256, 256),
            "duration": "20 steps",
            "eval_every": "5 steps",
            "checkpoint_every": "5 steps",
        }
        return digits_config(**({"task": name} | steps | overrides))

    name = task(**TASK)
    return config


def test_metrics_of_whole_sets_reach_file_table_page_and_best_checkpoint(walk, tmp_path):
    state, metrics = train.train_and_evaluate(walk(evaluate_sets_every="10 steps"), tmp_path)
    raw, average, difference = (read_metrics(tmp_path, curve) for curve in ("raw", "ema", "ema-raw"))
    assert [line["step"] for line in raw] == [10, 20]
    assert raw[-1]["return"] == pytest.approx(1.5 * float(state.params["scale"]), rel=1e-6)
    expected = np.arange(4) * (float(state.ema_params["ema"]["scale"]) - float(state.params["scale"]))
    found = [difference[-1][name] for name in ("return", "return_low", "return_high")]
    np.testing.assert_allclose(found, intervals.mean_interval(expected), rtol=1e-4)
    assert difference[-1]["spread"] == pytest.approx(average[-1]["spread"] - raw[-1]["spread"])
    assert "spread_low" not in difference[-1]  # of a number of the whole set
    best = max((line for line in average if "return" in line), key=lambda line: line["return"])
    assert find_checkpoint(tmp_path, "best").record.best.value == best["return"]
    assert metrics["ema"].keys() == {"return", "spread"}

    (group,), _ = runs.group([runs.Run.read(tmp_path)])
    text = tables.to_text([group])
    assert "return" in text
    assert "accuracy" not in text
    page.write(tmp_path)
    assert "spread" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_sets_are_evaluated_less_often_than_examples(walk, task, tmp_path):
    def some(experiment, weights, split):
        return {
            name: {"size": (float(jnp.abs(w["params"]["Dense_1"]["bias"]).sum()), None)} for name, w in weights.items()
        }

    name = task(evaluate=some, metrics={"size": "lower", "accuracy": "higher"})
    config = digits_config(task=name, eval_every="5 steps", evaluate_sets_every="10 steps")
    train.train_and_evaluate(config, tmp_path)
    lines = read_metrics(tmp_path, "ema")
    assert [line["step"] for line in lines if "accuracy" in line] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if "size" in line] == [10, 20]
    assert find_checkpoint(tmp_path, "best").record.best.value == min(line.get("size", 1e9) for line in lines)


def test_a_task_that_reports_nothing_is_refused():
    with pytest.raises(ValueError, match="needs a score_fn or an evaluate"):
        train.Task(score_fn=None)
    with pytest.raises(ValueError, match=r"Task\.metrics is empty"):
        train.Task(metrics={})


def test_what_a_task_evaluates_is_complete(walk, task, tmp_path):
    def forgetful(experiment, weights, split):
        return {name: {"return": found["return"]} for name, found in evaluate(experiment, weights, split).items()}

    config = walk(task=task(**TASK | {"evaluate": forgetful}))
    with pytest.raises(UserError, match=r"Task.metrics has spread; for the weights 'raw', .* return only return"):
        train.train_and_evaluate(config, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {"raw": found["raw"]}, r"evaluate returns raw; expected a dict with the metrics of raw, ema"),
        (lambda found: found | {"ema": {"return": found["ema"]["return"]}}, r"expected the same metrics of the same"),
        (lambda found: found | {"ema": 3.0}, r"for the weights 'ema', returns a float; expected a dict of metrics"),
        (lambda found: of_all(found, "return", 3.0), r"returns return = 3.0; expected \(number, items\)"),
        (lambda found: of_all(found, "step", (1.0, None)), r"returns 'step'; a metric's name must be"),
        (lambda found: of_all(found, "return_low", (1.0, None)), r"returns 'return_low'; a metric's name must be"),
        (lambda found: of_all(found, "return", (9.0, np.ones(4))), r"return = 9, of items whose mean is 1"),
        (lambda found: of_all(found, "return", (1.0, np.ones((2, 2)))), r"of shape \[2, 2\]; expected \[number"),
        (lambda found: of_all(found, "return", (1.0, [])), r"of shape \[0\]; expected \[number"),
        (lambda found: found | {"ema": found["ema"] | {"return": (1.0, np.ones(3))}}, r"expected the same metrics"),
    ],
)
def test_what_evaluate_returns_is_checked(walk, task, tmp_path, change, message):
    name = task(**TASK | {"evaluate": lambda *arguments: change(evaluate(*arguments))})
    experiment = create_experiment(walk(task=name), tmp_path)
    with pytest.raises(UserError, match=message):
        train.evaluate(experiment, experiment.state, ["test"])


def of_all(found, metric, value):
    return {name: metrics | {metric: value} for name, metrics in found.items()}


def test_memory_moves_on_with_every_step_and_comes_back_from_a_checkpoint(walk, tmp_path):
    whole, _ = train.train_and_evaluate(walk(loss__ramp="10 steps"), tmp_path / "whole")
    assert int(whole.memory["total"]) == 20
    train.train_and_evaluate(walk(loss__ramp="10 steps", duration="10 steps"), tmp_path / "parts")
    resumed, _ = train.train_and_evaluate(walk(loss__ramp="10 steps"), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.memory, resumed.memory)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    assert read_metrics(tmp_path / "parts", "raw") == read_metrics(tmp_path / "whole", "raw")


def test_a_rejected_step_keeps_what_the_memory_has_seen(walk, tmp_path):
    clean, _ = train.train_and_evaluate(walk(), tmp_path / "clean")
    state, _ = train.train_and_evaluate(walk(loss__poison=7), tmp_path / "poisoned")
    assert int(state.rejected["total"]) == 1
    jax.tree.map(np.testing.assert_array_equal, clean.memory, state.memory)
    assert float(state.params["scale"]) != float(clean.params["scale"])


def test_memory_stays_out_of_snapshots_and_exports(walk, tmp_path):
    train.train_and_evaluate(walk(snapshot_every="20 steps"), tmp_path / "run")
    (snapshot,) = (stored for stored in list_stored(tmp_path / "run") if stored.is_snapshot)
    assert not any(name.startswith("memory") for name in snapshot.record.leaves)
    export(tmp_path / "run", "ema", tmp_path / "out", "latest")
    about = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert about["scores"]["ema"].keys() == {"return", "spread"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "weights.json",
        "weights.msgpack",
        "weights.safetensors",
    ]
    assert FinishedRun.read(tmp_path / "run").weights(snapshot, "ema")["params"].keys() == {"scale"}


def test_what_would_make_an_earlier_batch_again_says_that_a_memory_has_moved_on(walk, task, tmp_path):
    with pytest.raises(UserError, match=r"4 steps in a row .* its batch came from a memory that has moved on"):
        train.train_and_evaluate(walk(optimizer__learning_rate=1e30, max_rejected_steps=2), tmp_path / "rejected")

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(use_running_average=not train)(Scale()(x, train))

    def square(params, state, batch):
        return jnp.square(params["Scale_0"]["scale"]), ({}, {})

    fields = TASK | {"create_model": lambda example: Normed(), "loss_fn": square, "needs": lambda loss: ()}
    config = walk(task=task(**fields), averages__ema__batch_stats="recompute")
    experiment = create_experiment(config, tmp_path / "recomputed")
    with pytest.raises(UserError, match=r"batch_stats = 'recompute' needs batches that can be made again"):
        train.evaluate(experiment, experiment.state, ["test"])


def test_an_average_that_the_loss_needs_is_there_before_anything_compiles(walk):
    with pytest.raises(UserError, match=r"averages.ema: kind = 'none', and the loss of task .* needs it"):
        check(walk(averages__ema__kind="none"))
    with pytest.raises(UserError, match=r"averages.teacher: it is missing, and the loss of task .* needs it"):
        check(walk(loss__target="teacher"))
    check(walk(averages__ema__kind="none", loss__target="none"))


def test_an_average_that_the_loss_needs_does_not_change_when_a_run_goes_on(walk, tmp_path):
    train.train_and_evaluate(walk(duration="5 steps", averages__ema__decay=0.5), tmp_path / "needed")
    with pytest.raises(UserError, match=r"averages.ema.decay: 0.5 before, 0.9 now"):
        train.train_and_evaluate(walk(duration="5 steps", averages__ema__decay=0.9), tmp_path / "needed")
    free = {"duration": "5 steps", "loss__target": "none"}
    train.train_and_evaluate(walk(averages__ema__decay=0.5, **free), tmp_path / "free")
    train.train_and_evaluate(walk(averages__ema__decay=0.9, **free), tmp_path / "free")


def test_a_loss_gets_its_durations_in_steps_and_config_json_gives_them_back(walk, tmp_path):
    train.train_and_evaluate(walk(loss__ramp="30%"), tmp_path)
    assert {line["ramp"] for line in read_metrics(tmp_path, "train")} == {6.0}
    assert run_config.read(tmp_path).loss.ramp == 6
    again = stored_config.get_config(str(tmp_path / "config.json"))
    assert (again.loss.ramp, again.loss.target, again.model.start) == ("6 steps", "ema", 0.25)
    assert resolve(again, num_train=None) == resolve(walk(loss__ramp="30%"), num_train=None)
    with pytest.raises(UserError, match=r"loss.ramp = 'soon': 'soon' is not a duration"):
        check(walk(loss__ramp="soon"))


def test_data_get_their_fields_and_their_durations_in_steps(walk, tmp_path):
    experiment = create_experiment(walk(data__first=3.0, data__pause="50%"), tmp_path)
    assert experiment.config.data.to_dict() == {"first": 3.0, "pause": 10}
    np.testing.assert_array_equal(experiment.state.memory["buffer"], 3 + np.arange(SIZE))
    with pytest.raises(UserError, match=r"data.frist is unknown; did you mean data.first\?"):
        check(walk(data__frist=3.0))


@pytest.mark.parametrize("field", ["duration", "eval_every", "loss__ramp"])
def test_a_task_without_epochs_refuses_them(walk, tmp_path, field):
    with pytest.raises(UserError, match=rf"{field.replace('__', '.')} = '2 epochs': this task has no epochs"):
        train.train_and_evaluate(walk(**{field: "2 epochs"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fields_of_a_model_of_ones_own_are_checked_like_others(walk):
    with pytest.raises(UserError, match=r"model\.width = 3: the model of task 'task_\d+' has no such field"):
        check(walk(model__width=3))
    check(walk(model__name="scale"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("examples.nothing.train", r"task = 'examples.nothing.train': must be one of .*, 'examples.dqn.train'"),
        ("examples.dqn.trian", r"did you mean 'examples.dqn.train'\?"),
        ("clasification", r"did you mean 'classification'\?"),
        ("os.path", r"task = 'os.path': must be one of 'classification', .* or a new one in train.TASKS or examples/"),
    ],
)
def test_a_task_that_is_no_fork_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        train.find_task(name)


def test_what_the_functions_of_a_task_return_is_checked_before_the_workdir_is_made(walk, task, tmp_path):
    config = walk(task=task(**TASK | {"create_model": lambda example: None}))
    with pytest.raises(UserError, match="create_model returns a NoneType; expected a linen module"):
        train.train_and_evaluate(config, tmp_path / "run")
    config = walk(task=task(**TASK | {"num_train": input_pipeline.count_train}), dataset="numbers/x")
    with pytest.raises(UserError, match=r"give it a num_train of its own, such as num_train=lambda config"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_in_the_functions_of_a_task_names_it(walk, task, tmp_path):
    config = walk(task=task(**TASK | {"loss_fn": lambda params, state, batch, *, ramp: 1, "needs": lambda loss: ()}))
    with pytest.raises(TypeError) as error:
        train.train_and_evaluate(config, tmp_path)
    assert error.value.__notes__[-1] == f"The functions of task {config.task!r} were being traced."


def test_the_defaults_of_a_task_are_classification():
    assert train.Task() == train.TASKS["classification"]
    assert dataclasses.replace(train.Task(), evaluate=None) == train.Task()


def test_a_ratio_is_the_sum_over_its_count_and_its_interval_the_jackknifes_over_groups():
    rng = np.random.default_rng(0)
    group = np.array([7, 7, 3, 3, 3, 9, 1, 1])
    count = rng.integers(1, 9, 8).astype(float)
    sums = {name: rng.normal(size=8) + 2 for name in ("new", "old")}
    scores = {name: {"ppl": (total, count), "plain": total, "group": group} for name, total in sums.items()}
    assert summarize(scores["new"])["ppl"] == pytest.approx(sums["new"].sum() / count.sum(), rel=1e-12)
    assert summarize(scores["new"])["plain"] == pytest.approx(sums["new"].mean(), rel=1e-12)
    found = compare(scores["new"], scores["old"])

    def apart(kept):
        return (sums["new"] - sums["old"])[kept].sum() / count[kept].sum()

    everything = np.ones(8, bool)
    pseudo = [4 * apart(everything) - 3 * apart(group != name) for name in np.unique(group)]
    mean, low, high = intervals.mean_interval(np.array(pseudo))
    expected = [apart(everything), *(bound - mean + apart(everything) for bound in (low, high))]
    np.testing.assert_allclose([found[name] for name in ("ppl", "ppl_low", "ppl_high")], expected, rtol=1e-12)


def test_groups_of_one_example_give_the_interval_of_the_examples():
    new, old = np.random.default_rng(0).normal(size=(2, 10))
    group = np.random.default_rng(1).permutation(10)
    with_groups = compare({"x": new, "group": group}, {"x": old, "group": group})
    without = compare({"x": new}, {"x": old})
    assert with_groups == pytest.approx(without, rel=1e-12)
    assert {len(part) for part in in_groups({"x": new, "group": group // 2})["x"]} == {5}


@pytest.mark.slow
def test_a_ratio_of_the_score_function_is_reported(task, tmp_path):
    def score_fn(apply_fn, variables, batch):
        found = evaluation.score_fn(apply_fn, variables, batch)
        weight = 1.0 + batch["label"]
        return {"weighted": (weight * found["accuracy"], weight), "group": batch["label"]}

    config = digits_config(task=task(score_fn=score_fn, metrics={"weighted": "higher"}), duration="10 steps")
    _, metrics = train.train_and_evaluate(config, tmp_path)
    experiment = create_experiment(config, tmp_path)
    assert 0 < metrics["ema"]["weighted"] <= 1
    line = read_metrics(tmp_path, "ema-raw")[-1]
    assert line["weighted_low"] < line["weighted"] < line["weighted_high"]
    assert experiment.config.proportions == ()
