import itertools
import json
import math
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.text import Text
from PIL import Image

import averaging
from examples import bootstrapping, kernels, low_pass
from examples.anchor import anchors
from examples.diffusion import lengths
from examples.dqn import targets
from examples.gan import swing
from examples.mean_teacher import teachers
from examples.td3 import targets as td3_targets
from examples.when_it_works import grid
from runtime import intervals

SCHEDULES = {
    "ema": averaging.ema(averaging.half_life_to_decay(50)),
    "tail mean": averaging.starting_at(averaging.running_mean(), low_pass.NUM_STEPS - 144),
    "power": averaging.power_ema(0.1),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_is_divided_by_the_effective_number_and_a_line_lags_by_the_mean_age(name):
    num_parameters = 2000
    variance, lag = low_pass.measure(SCHEDULES[name], num_parameters)
    about = averaging.describe(SCHEDULES[name], low_pass.NUM_STEPS)
    # Of n normal values, the variance has a relative standard deviation of sqrt(2 / n).
    assert abs(variance * about.effective_number - 1) < 4 * math.sqrt(2 / num_parameters)
    # Each update rounds by up to half a unit in the last place of 2,000, which is then forgotten as iterates are.
    assert abs(lag - about.mean_age) < 2**-14 * (about.mean_age + 1)


def test_an_oscillation_is_kept_as_the_kernel_says():
    periods, kept = low_pass.response(SCHEDULES["ema"])
    period = 200
    wave = np.sin(2 * np.pi * np.arange(low_pass.NUM_STEPS + 1) / period)
    left = low_pass.run(SCHEDULES["ema"], jnp.asarray(wave, jnp.float32))[-period:]
    amplitude = np.sqrt(2 * np.mean(np.square(left)))
    # What remains of the beginning has decayed by 2 ** (-1800 / 50); float32 rounds by 6e-8 an update.
    assert amplitude == pytest.approx(np.interp(period, periods, kept), rel=1e-4)


def test_the_weights_in_the_picture_are_those_of_the_averages_and_sum_to_one():
    figure = kernels.draw()
    assert len(figure.axes) == len(kernels.AVERAGES)
    for axes, (name, schedule) in zip(figure.axes, kernels.AVERAGES.items(), strict=True):
        assert axes.get_title(loc="left").startswith(name)
        points = np.concatenate([np.array(lines.get_segments()) for lines in axes.collections])  # [line, end, x or y]
        drawn = {int(x): y - bottom for (_, bottom), (x, y) in points}
        assert sorted(drawn) == list(range(kernels.NUM_STEPS + 1))
        assert sum(drawn.values()) == pytest.approx(1, abs=1e-12)
        # Iterates that are unit vectors have their weights for an average. Float32 rounds by 6e-8 an update.
        average = low_pass.run(schedule, jnp.eye(kernels.NUM_STEPS + 1))[-1]
        tiny = np.finfo(np.float32).tiny  # below which there is only 0
        np.testing.assert_allclose(average, [drawn[i] for i in range(kernels.NUM_STEPS + 1)], rtol=1e-4, atol=tiny)


TARGETS = json.loads((targets.FOLDER / "targets.json").read_text())
LENGTHS = json.loads((lengths.FOLDER / "lengths.json").read_text())
SWING = json.loads((swing.FOLDER / "swing.json").read_text())
STORED = json.loads((grid.FOLDER / "grid.json").read_text())
TEACHERS = json.loads((teachers.FOLDER / "teachers.json").read_text())
TD3 = json.loads((td3_targets.FOLDER / "targets.json").read_text())
ANCHORS = json.loads((anchors.FOLDER / "anchors.json").read_text())


@pytest.mark.parametrize(
    "draw",
    [
        bootstrapping.draw,
        kernels.draw,
        low_pass.draw,
        lambda: grid.draw(STORED["cells"]),
        lambda: targets.draw(TARGETS),
        lambda: swing.draw(SWING),
        lambda: lengths.draw(LENGTHS),
        lambda: teachers.draw(TEACHERS),
        lambda: anchors.draw(ANCHORS),
        lambda: td3_targets.draw(TD3),
    ],
)
def test_a_picture_can_be_read_on_a_phone(draw):
    figure = draw()
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    for text in texts:
        assert text.get_fontsize() / 72 / figure.get_figwidth() * 360 >= 9, text  # pixels, at a width of 360
    drawn = figure.get_tightbbox()  # in inches
    assert min(drawn.x0, drawn.y0) >= 0
    assert drawn.x1 <= figure.get_figwidth()
    assert drawn.y1 <= figure.get_figheight()
    titles = [text for text in texts if len(text.get_text()) > 8 and "$" not in text.get_text()]  # and labels; no ticks
    boxes = [text.get_window_extent() for text in titles]
    assert len(boxes) >= 6
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bootstrapping", "kernels", "low_pass"])
def test_an_example_writes_its_picture(tmp_path, name):
    command = [sys.executable, "-W", "error", "-m", f"examples.{name}"]
    result = subprocess.run([*command, tmp_path / "picture.png"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] >= 720
        assert len(set(picture.convert("L").get_flattened_data())) > 10  # not blank
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"python -m examples.{name}" in result.stderr


def test_the_stored_grid_has_every_cell_with_every_seed():
    assert [{axis: cell[axis] for axis in grid.AXES} for cell in STORED["cells"]] == grid.CELLS
    for cell in STORED["cells"]:
        assert len(cell["raw"]) == len(cell["ema"]) == grid.NUM_SEEDS
        assert all(0 <= value <= 1 for value in cell["raw"] + cell["ema"] if value is not None)
        assert [value is None for value in cell["raw"]] == [value is None for value in cell["ema"]]
    assert re.fullmatch("[0-9a-f]{40}", STORED["environment"]["commit"])  # of a working tree without changes


def test_what_the_text_says_of_the_grid_is_what_is_stored():
    text = (grid.FOLDER / "README.md").read_text()
    blocks = grid.table(STORED["cells"]), grid.findings(STORED["cells"])
    assert blocks[0] in text
    assert "\n".join(f"    {line}" for line in blocks[1].splitlines()) in text
    # Whatever else it quotes stands in one of the two, or follows from the runs of ten times the length.
    result = json.loads((ROOT / "benchmarks" / "results" / "when_it_works_long.json").read_text())
    long = 100 * np.array(
        [line["accuracy"] for seed in result["seeds"] for line in seed["metrics"] if line["curve"] == "ema-raw"]
    )
    short = {
        cell["learning_rate"]: grid.gain(cell) for cell in STORED["cells"] if list(cell.values())[:3] == [0.4, 128, 32]
    }
    differences = [intervals.mean_interval(values) for values in (long, long - short[0.003], long - short[0.03])]
    quoted = ["{:+.1f} points ({:+.1f} .. {:+.1f})", "{:+.1f} ({:+.1f} .. {:+.1f})", "{:+.1f} ({:+.1f} .. {:+.1f})"]
    quoted = [form.format(*difference) for form, difference in zip(quoted, differences, strict=True)]
    assert all(sentence in re.sub(r"\s+", " ", text) for sentence in quoted)
    numbers = r"[+-]\d+\.\d|\d+\.\d %"
    assert set(re.findall(numbers, text)) <= set(re.findall(numbers, "".join([*blocks, *quoted])))


def test_the_picture_of_the_grid_shows_gains_and_levels_at_rate_over_batch_size():
    figure = grid.draw(STORED["cells"])
    drawn = {axes: [line.lines[0].get_xydata() for line in axes.containers] for axes in figure.axes}
    left, right = (np.concatenate(list(itertools.chain(*list(drawn.values())[side::2]))) for side in (0, 1))
    for cell, (x, gain), (same, level) in zip(STORED["cells"], left, right, strict=True):
        assert x == same == cell["learning_rate"] / cell["batch_size"]
        if grid.failed(cell):
            assert math.isnan(gain)
        else:
            raw, averaged = np.array(cell["raw"]), np.array(cell["ema"])
            assert level == pytest.approx(100 * raw.mean())
            assert gain == pytest.approx(100 * intervals.mean_interval(averaged - raw)[0])


@pytest.mark.slow
def test_a_grid_trains_what_is_missing_and_draws(tmp_path, capsys):
    cell = {"label_noise": 0.4, "width": 16, "batch_size": 32, "learning_rate": 0.1}
    other = cell | {"batch_size": 64}
    grid.run(tmp_path / "grid.json", [cell], 2, "20 steps")
    first = json.loads((tmp_path / "grid.json").read_text())
    assert capsys.readouterr().out.splitlines() == [f"2/2 runs, 0 min left: {cell}"]
    assert cell.items() <= first["cells"][0].items()
    assert first["cells"][0]["raw"] == [grid.train_once(cell, seed, "20 steps")[0] for seed in (0, 1)]
    grid.run(tmp_path / "grid.json", [cell, other], 2, "20 steps")
    assert capsys.readouterr().out.splitlines() == [f"2/2 runs, 0 min left: {other}"]
    second = json.loads((tmp_path / "grid.json").read_text())
    assert second["cells"][:1] == first["cells"]
    assert len(second["cells"]) == 2
    assert grid.table(second["cells"]).count("±") + grid.table(second["cells"]).count("failed") == 2
    grid.draw(second["cells"]).savefig(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert len(set(picture.convert("L").get_flattened_data())) > 10  # not blank


@pytest.mark.slow
def test_every_number_of_a_cell_and_the_seed_matter_to_its_training():
    cell = {"label_noise": 0.4, "width": 16, "batch_size": 32, "learning_rate": 0.1}
    changes = [{}, {"label_noise": 0.2}, {"width": 8}, {"batch_size": 16}, {"learning_rate": 0.05}]
    scores = [grid.train_once(cell | change, 0, "40 steps") for change in changes]
    scores.append(grid.train_once(cell, 1, "40 steps"))
    assert len(set(scores)) == len(scores) == 6


def test_pairs_of_targets_have_the_mean_age_that_the_page_says():
    for soft, hard, age in (("soft 0.04", "hard 49", 24), ("soft 0.005", "hard 399", 199)):
        tau, period = targets.TARGETS[soft].tau, int(targets.TARGETS[hard].period.split()[0])
        kernel = averaging.kernel(averaging.soft_update(tau), 10_000)
        assert averaging.describe(kernel, 10_000).mean_age == pytest.approx(age, rel=1e-9)
        # Of a copy, after each update of a period.
        ages = [
            averaging.describe(
                averaging.kernel(averaging.hard_update(period), 10 * period + i), 10 * period + i
            ).mean_age
            for i in range(period)
        ]
        assert np.mean(ages) == age


def test_the_tables_of_td3_have_every_variant_with_its_paired_difference():
    """Of made-up runs: all are the same but those without a target, single, whose returns are lower by the seed."""
    lower = [[value - 2 * seed for value in returns] for seed, returns in enumerate([[-300.0] * 20] * 10)]
    made = {
        name: {"return": [[-300.0] * 20] * 10, "bias": [[0.0] * 10 + [30.0] * 10] * 10} for name in td3_targets.VARIANTS
    }
    made["none, single"] = {"return": lower, "bias": [[90.0] * 20] * 10}
    result = {**TD3, "variants": made}
    table, findings = td3_targets.table(result), td3_targets.findings(result)
    # Student's t of ten seeds.
    half = 2.2622 * np.std(np.arange(0, 20, 2), ddof=1) / 10**0.5
    interval = f"+9 ({9 - half:+.0f} .. {9 + half:+.0f})"
    assert table.count(interval) == 2  # at the end and over training
    assert "| none | 90 (90 .. 90) | 30 (30 .. 30) | -60 (-60 .. -60) |" in table
    assert f"single, soft 0.005 minus none, over training: {interval}" in findings
    assert findings.count("0 of 10 seeds at -200 or above, worst -300") == 7
    assert "none, single: 0 of 10 seeds at -200 or above, worst -318" in findings
