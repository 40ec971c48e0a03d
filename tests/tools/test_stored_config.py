"""A run's own config.json is a config, and the run that it describes is the same one."""

import importlib
import json

import ml_collections
import pytest
from conftest import ROOT, check, digits_config, get_config, read_metrics, resolve, run_main

from configs import default
from runtime import durations, run_config
from tools import stored_config

SHIPPED = {path.stem: get_config(path.stem) for path in (ROOT / "configs").glob("*.py")}
FORKS = {
    f"{path.parts[-3]}, {path.stem}": importlib.import_module(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
    ).get_config()
    for path in ROOT.glob("*/*/configs/*.py")
}
OTHERS = {
    "fractions of steps": digits_config(duration="1.5 epochs", log_every="0.7%", snapshot_every="0.3 epochs"),
    "wsd": digits_config(optimizer__schedule="wsd", optimizer__warmup="10%", optimizer__decay="33%"),
    "one_cycle": digits_config(optimizer__schedule="one_cycle", optimizer__warmup="30%"),
    "no averages": digits_config(averages={}),
    "groups": digits_config(optimizer__groups={"first": default.group("Dense_0/", factor=0.5, clip_norm=1.0, every=2)}),
    "averages": digits_config(
        averages={
            "slow": default.average("ema", half_life="7%", start="11%", every="3 steps"),
            "swa": default.average("running_mean", restart_every="0.5 epochs", batch_stats="recompute"),
            "target": default.average("hard_update", period="5 steps"),
            "resting": default.average("cosine_update", duration="33%", every="3 steps"),
        }
    ),
}


@pytest.mark.parametrize("name", [*SHIPPED, *FORKS, *OTHERS])
def test_the_config_that_a_run_has_stored_resolves_to_itself(tmp_path, name):
    resolved = resolve((SHIPPED | FORKS | OTHERS)[name], num_train=50021)
    run_config.write(resolved, tmp_path)
    assert resolve(stored_config.get_config(str(tmp_path / "config.json")), num_train=50021) == resolved


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_config_that_went_through_json_is_accepted(name):
    config = SHIPPED[name]
    from_json = ml_collections.ConfigDict(json.loads(config.to_json()))
    check(from_json)
    assert resolve(from_json, num_train=50021) == resolve(config, num_train=50021)


def test_a_fraction_of_a_step_is_a_duration():
    assert str(durations.parse("1875/2 steps").number) == "1875/2"
    with pytest.raises(ValueError, match="is not a duration"):
        durations.parse("1/0 steps")


@pytest.mark.slow
def test_a_run_is_repeated_and_changed_from_what_it_has_stored(tmp_path):
    first = run_main(f"--workdir={tmp_path / 'a'}", "--config.duration=20 steps", "--config.eval_every=30%")
    assert first.returncode == 0, first.stderr
    stored = str(tmp_path / "a" / "config.json")
    again = run_main(f"--workdir={tmp_path / 'b'}", config=stored)
    assert again.returncode == 0, again.stderr
    for file in ("config.json", "metrics.jsonl"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes()
    assert run_main(f"--workdir={tmp_path / 'a'}", "--mode=eval", config=stored).returncode == 0
    assert run_main(f"--workdir={tmp_path / 'c'}", "--config.seed=1", config=stored).returncode == 0
    assert read_metrics(tmp_path / "c") != read_metrics(tmp_path / "a")
    wrong = run_main(f"--workdir={tmp_path / 'd'}", "--config.sed=1", config=stored)
    assert (wrong.returncode, "sed is unknown; did you mean seed?" in wrong.stderr) == (1, True)
    (tmp_path / "a" / "other.json").write_text("{}")
    for file, message in (
        ("no/config.json", "no holds no run"),
        ("other.json", "must be a Python file, or the config"),
    ):
        refused = run_main(f"--workdir={tmp_path / 'd'}", config=str(tmp_path / "a" / file))
        assert refused.returncode == 1
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
