"""Runs and diagnoses as their files have them, without any training."""

import json

from reporting.runs import Run


def make_run(folder, *, seed=0, accuracies=((0.5, 0.6), (0.7, 0.8)), config=(), lines=(), steps=(10, 20)) -> Run:
    """A workdir with the accuracies of (raw, ema) at each step; the bounds of their difference are 0.01 off it."""
    folder.mkdir()
    found = [{"step": step, "curve": "train", "loss": 1.0, "learning_rate": 0.1} for step in steps]
    for step, (raw, ema) in zip(steps, accuracies, strict=True):
        shared = {"step": step, "split": "test"}
        found += [
            shared | {"curve": "raw", "accuracy": raw, "loss": 1 - raw},
            shared | {"curve": "ema", "accuracy": ema, "loss": 1 - ema},
            shared
            | {"curve": "ema-raw", "accuracy": ema - raw, "accuracy_low": ema - raw - 0.01}
            | {"accuracy_high": ema - raw + 0.01, "loss": raw - ema, "loss_low": -1.0, "loss_high": 1.0}
            | {"agreement": 0.9},
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*found, *lines]))
    (folder / "config.json").write_text(
        json.dumps({"seed": seed, "duration": 20, "optimizer": {"name": "sgd"}, **dict(config)})
    )
    (folder / "timing.jsonl").write_text('{"step": 20, "train_seconds": 4.0, "eval_seconds": 1.0}\n')
    (folder / "environment.json").write_text('{"python": "3.11", "packages": {"jax": "1"}, "commit": "abc"}')
    kernel = {"iterates_per_bin": 3, "kernel": [0.25, 0.75], "num_updates": 5}
    numbers = {"initial_weight": 0.0, "mean_age": 1.5, "half_life": 1.0, "effective_number": 3.0}
    (folder / "averages.json").write_text(json.dumps({"ema": {"kind": "ema", **kernel, **numbers}}))
    return Run.read(folder)


def make_diagnosis(workdir="runs/mine", other="runs/other", average="ema") -> dict:
    """What tools.diagnose stores in `diagnosis/numbers.json`, with a sharp valley instead of a network."""

    def line(shares, ends, names, **more):
        curves = [
            {
                "name": name,
                "split": split,
                "loss": [0.1 + number + share**2 for share in shares],
                "accuracy": [0.9 - share**2 / 10 for share in shares],
                "difference": {
                    "accuracy": -0.1, "accuracy_low": -0.12, "accuracy_high": -0.08,
                    "loss": 1.0, "loss_low": 0.8, "loss_high": 1.2, "agreement": 0.9,
                },
                "barrier": [0.25, 0.2, 0.3],
                "barrier_at": shares[len(shares) // 2],
            }
            for number, name in enumerate(names)
            for split in ("train", "test")
        ]  # fmt: skip
        return {"shares": shares, "ends": ends, "distance": 2.0, "curves": curves, **more}

    def scores(*losses):
        return [{"loss": loss, "accuracy": 1 - loss, "calibration_error": 0.01} for loss in losses]

    between = [0.0, 0.25, 0.5, 0.75, 1.0]
    places = [-1.0, 0.0, 1.0, 2.0]
    sharp = {"eigenvalues": [3.0, 2.0], "residuals": [1e-6, 1e-5], "elsewhere": 2 * [[2.5, 2.0, 3.0]]}
    path = {"raw": [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], average: [[1.5, 1.0, 2.0], [1.0, 0.0, 0.0]]}
    return {
        "step": 20,
        "average": average,
        "num_images": {"train": 40, "test": 40},
        "line": line([-1.0, *between, 2.0], ["raw", average], [""], norm=10.0),
        "checkpoints": line(between, ["step 10", "step 20"], [""]),
        "plane": {
            "x": places,
            "y": places,
            "losses": {split: [[0.1 + x**2 + 2 * y**2 for x in places] for y in places] for split in ("train", "test")},
            "corners": {"raw": [0.0, 0.0], average: [1.0, 0.0], "step 10": [1.0, 2.0]},
            "paths": path,
            "repeated": path,
        },
        "sharpness": {
            "num_images": 20,
            "raw": {**sharp, "trace": [9.0, 8.0, 10.0]},
            average: {**sharp, "trace": [5.0, 4.0, 6.0]},
            "difference": {"largest": [-1.0, -1.5, -0.5], "trace": [-4.0, -5.0, -3.0]},
        },
        "ensembles": {
            "steps": [10, 15, 20],
            "split": "test",
            "difference": {
                "accuracy": 0.01, "accuracy_low": 0.0, "accuracy_high": 0.02,
                "loss": -0.1, "loss_low": -0.2, "loss_high": 0.0, "agreement": 0.9,
            },
            "single": scores(0.3, 0.4, 0.5),
            "weights": scores(0.3, 0.2, 0.1),
            "predictions": scores(0.3, 0.25, 0.2),
        },
        "oscillations": {
            "step": 10,
            "num_steps": 48,
            "num_weights": 256,
            "frequencies": [0.125, 0.25, 0.5],
            "raw": [1e-4, 1e-5, 1e-6],
            "averaged": [1e-5, 1e-7, 1e-9],
            "kept": [0.3, 0.1, 0.03],
            "left": [0.1, 0.08, 0.12],
            "predicted": 0.09,
        },
        "runs": line(
            between, [workdir, other], ["as trained", "units matched"], matched_distance=1.0, num_units=32
        ),
        "command": f"python -m tools.diagnose {workdir} {other}",
    }  # fmt: skip


def store_diagnosis(folder, numbers) -> Run:
    (folder / "diagnosis").mkdir()
    (folder / "diagnosis" / "numbers.json").write_text(json.dumps(numbers))
    return Run.read(folder)
