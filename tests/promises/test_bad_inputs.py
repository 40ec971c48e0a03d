"""What a user may get wrong is refused in one message, without a traceback, and with nothing changed on disk."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, run_main

from runtime import run_folder

COMPILES = "Compiling jit(create)"  # what JAX logs of the first program of any size, if it is asked to
SHORT = ("--config.duration=30 steps", "--config.checkpoint_every=10 steps", "--config.best_curve=raw")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints at steps 10, 20 and 30."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run_main(f"--workdir={workdir}", *SHORT, JAX_LOG_COMPILES="1")
    assert result.returncode == 0, result.stderr
    assert COMPILES in result.stderr
    return workdir


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes | None]:
    """Every file below a folder but the lock, and the folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if path.name != "lock"}


def check(result: subprocess.CompletedProcess, message: str) -> None:
    """One message, in as many lines as there are things to say, on the standard error."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert message in result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert len(result.stderr.splitlines()) <= 4, result.stderr


# What is wrong with each, and what would be right.
FIELDS = {
    "sed=1": "sed is unknown; did you mean seed?",
    "seed=one": "seed = 'one': must be a int such as 0",
    "seed=-1": "seed = -1: must be in [0, 2**32)",
    "dataset=no_such_set": "neither digits nor a TFDS data set; see https://",
    "dataset=mnits": "did you mean mnist",
    "dataset=../../mnist": "dataset = '../../mnist': must be a name",
    "dataset=huggingface:mnist": "dataset = 'huggingface:mnist': must be a name",
    "num_validation=-1": "num_validation = -1: must be a finite number of at least 0",
    "num_validation=901": "num_validation = 901: must be below the 901 training images",
    "label_noise=1.5": "label_noise = 1.5: must be in [0, 1)",
    "init_from=no_such_run": "init_from = 'no_such_run' holds no checkpoint; it must be the --workdir of a run",
    "init_weights=ema": "init_weights = 'ema': init_from is empty; leave it at its default",
    "batch_size=0": "batch_size = 0: must be at least 1",
    "batch_size=5000": "batch_size = 5000: must be at most 901",
    "accumulate=3": "batch_size = 32: must be a multiple of 3, the number of devices times accumulate; the nearest is",
    "duration=ten epochs": 'write "500 steps", "10 epochs"',
    "duration=50%": "the length of training cannot be a percentage of itself",
    "duration=0 steps": "duration = '0 steps': a period must be longer than 0",
    "duration=99999999999 steps": "duration = '99999999999 steps': is 1e+11 steps; must be below 2**31",
    "log_every=0%": "log_every = '0%': a period must be longer than 0",
    "checkpoint_every=": "checkpoint_every = '': '' is not a duration; write",
    "keep_checkpoints=0": "keep_checkpoints = 0: must be at least 1",
    "best_curve=average": "best_curve = 'average': must be empty or one of raw, ema",
    "best_metric=error": "best_metric = 'error': must be one of 'accuracy', 'loss'",
    "profile=(3,2)": "profile = (3, 2): must be two integers, (first, end) with first below end",
    "profile=(3": "profile = ('(3',): must be two integers",
    "profile=(3,": "profile = '(3,': must be a tuple such as (0, 0)",
    "profile=(9000,9001)": "profile = (9000, 9001): training ends at step 282",
    "model.name=resent": "did you mean 'resnet'?",
    "model.depth=18": "model.depth = 18: model 'mlp' has no such field; leave it at its default",
    "model.hidden_sizes=(8,0)": "model.hidden_sizes = (8, 0): must be positive integers",
    "model.dtype=float16": "model.dtype = 'float16': must be one of 'float32', 'bfloat16'",
    "optimizer=sgd": "optimizer is unknown; did you mean optimizer.",
    "optimizer.nesterof=True": "optimizer.nesterof is unknown; did you mean optimizer.nesterov?",
    "optimizer.name=adam": "optimizer.name = 'adam': must be one of 'sgd', 'adamw', 'lion', 'muon'; did you",
    "optimizer.learning_rate=nan": "optimizer.learning_rate = nan: must be a finite number",
    "optimizer.learning_rate=1e39": "optimizer.learning_rate = 1e+39: must be a finite number",
    "optimizer.momentum=1.0": "optimizer.momentum = 1.0: must be in [0, 1)",
    "optimizer.schedule=cosin": "did you mean 'cosine'?",
    "optimizer.warmup=200%": "optimizer.warmup = '200%': too long for the training of 282 steps",
    "augment.cutout=99999999999": "augment.cutout = 99999999999: must be in [0, 1000]",
    "averages.slow.decay=0.9": "averages.slow.decay is unknown; an average is added in a config file",
    "averages.ema.kind=emma": "did you mean 'ema'?",
    "averages.ema.decay=1.0": "averages.ema.decay = 1.0: must be in [0, 1)",
    "averages.ema.tau=0.5": "averages.ema.tau = 0.5: kind 'ema' has no such field",
    "averages.ema.batch_stats=copy": "averages.ema.batch_stats = 'copy': the model has no batch statistics",
}


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_field_is_refused(tmp_path, field):
    result = run_main(f"--workdir={tmp_path / 'run'}", f"--config.{field}", TFDS_DATA_DIR=str(tmp_path / "none"))
    check(result, FIELDS[field])
    assert not contents(tmp_path)


@pytest.mark.slow
def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    wrong = ("sed=1", "seed=one", "averages.slow.tau=1", "label_noise=1.5", "optimizer.name=adam", "best_curve=x")
    result = run_main(f"--workdir={tmp_path / 'run'}", *(f"--config.{field}" for field in wrong))
    assert result.returncode == 1
    names = [line.partition(" ")[0] for line in result.stderr.splitlines()[1:]]
    assert sorted(names) == sorted(field.partition("=")[0] for field in wrong)
    assert not contents(tmp_path)


FLAGS = {
    "--workdirr=x": "Unknown command line flag 'workdirr'. Did you mean: workdir",
    "--mode=evaluate": "--mode=evaluate: value should be one of <train|eval>",
    "--mode=eval": "holds no checkpoint; --mode=train makes one",
    "--checkpoint=last": "--checkpoint=last: value should be one of <latest|best>",
    "--config_change=yes": "--config_change=yes: value should be one of <refuse|accept>",
    "--debug_nans=perhaps": "--debug_nans=perhaps",
    "seed=1": "unknown argument 'seed=1'; flags are written --name=value",
    "--cache_dir=~no_such_user/x": "--cache_dir=~no_such_user/x cannot be used",
    "--cache_dir=/proc/x": "--cache_dir=/proc/x cannot be used",
    "--workdir=/proc/x": "--workdir=/proc/x cannot be used",
    f"--workdir={ROOT / 'main.py'}": "cannot be used",
    "--workdir=": "--workdir=: must name a folder",
    "--config=configs/no_such_config.py": "cannot be read: [Errno 2] No such file or directory",
    "--config=configs": "cannot be read",
    "--config=configs/digits.py:x": "get_config() takes 0 positional arguments but 1 was given",
    "--config=README.md": "is no Python: ",
}


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
def test_a_wrong_flag_is_refused(tmp_path, flag):
    check(run_main(f"--workdir={tmp_path / 'run'}", flag), FLAGS[flag])
    assert not contents(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        (("main",), "--config and --workdir"),
        (("main", "--workdir=x"), "--config"),
        (("main", "--config=configs/digits.py"), "--workdir"),
        (("tools.show_batch",), "--config"),
    ],
)
def test_a_flag_that_is_missing_is_named(flags, missing):
    result = subprocess.run([sys.executable, "-m", *flags], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"error: {missing} must be given; --help shows how the command is used\n"


CONFIGS = {
    "config.averages['a/b'] = default.average('ema')": "averages.a/b: the name must be letters, digits and _",
    "config.averages.raw = default.average('ema')": "averages.raw: the name must be letters, digits and _, and neither",
    "config.averages.x = 3": "averages.x = 3: must be a dict such as default.average",
    "del config.averages; config.averages = 3": "averages = 3: must be a dict",
    "config.averages.ema = {'kind': 'ema', 'decya': 0.9}": "averages.ema.decya is unknown; did you mean",
    "del config['optimizer']": "optimizer.name is missing; its default is 'sgd'",
    "config.optimiser = 3": "optimiser is unknown",
    "del config['seed']; config.seed = None": "seed = None is a NoneType; must be a int such as 0",
    "del config['seed']; config.seed = True": "seed = True is a bool; must be a int such as 0",
    "return {}": "get_config() of the file that --config names must return an ml_collections.ConfigDict",
    "return 3 +": "is no Python: invalid syntax",
    "return config\n\ndel get_config\n\ndef other():": "has no get_config(); configs/digits.py shows",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", CONFIGS)
def test_a_wrong_config_file_is_refused(tmp_path, line):
    file = tmp_path / "config.py"
    file.write_text(
        "from configs import default\n\ndef get_config():\n    config = default.get_config()\n"
        f"    {line}\n    return config\n"
    )
    before = contents(tmp_path)
    result = run_main(f"--workdir={tmp_path / 'run'}", config=str(file), PYTHONDONTWRITEBYTECODE="1")
    assert CONFIGS[line] in result.stderr
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert contents(tmp_path) == before


def edit_json(path: pathlib.Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip_all(workdir: pathlib.Path) -> None:
    for path in (workdir / "checkpoints").glob("*/state/manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")


WORKDIRS = {
    "another field": (lambda run: None, ["--config.seed=3"], "seed: 0 before, 3 now"),
    "a shorter run": (lambda run: None, ["--config.duration=20 steps"], "duration: 30 before, 20 now"),
    "another origin": (lambda run: None, ["--config.init_from=x", "--config_change=accept"], "cannot be changed"),
    "another model": (
        lambda run: None,
        ["--config.model.hidden_sizes=(8,)", "--config_change=accept"],
        "checkpoints/30 does not fit the config's model or optimizer: it has",
    ),
    "config.json is torn": (
        lambda run: (run / "config.json").write_text((run / "config.json").read_text()[:99]),
        [],
        "config.json is damaged",
    ),
    "config.json is something else": (
        lambda run: (run / "config.json").write_text("[1]"),
        [],
        "config.json is damaged",
    ),
    "config.json is gone": (lambda run: (run / "config.json").unlink(), [], "has checkpoints and no config.json"),
    "checkpoints are gone": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        [],
        "has metrics or snapshots of a run and no checkpoint",
    ),
    "checkpoints are damaged": (flip_all, [], "has no checkpoint to go on from"),
    "checkpoints are damaged, and scored": (flip_all, ["--mode=eval"], "holds no checkpoint; --mode=train makes one"),
    "metrics are gone": (lambda run: (run / "metrics.jsonl").unlink(), [], "bytes of metrics.jsonl, which has 0"),
    "metrics are damaged": (
        lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes().replace(b"{", b"[", 1)),
        [],
        "metrics.jsonl, line 1, is damaged",
    ),
    "a link leads elsewhere": (
        lambda run: (run / "environment.json").unlink() or (run / "environment.json").symlink_to("../elsewhere"),
        [],
        "environment.json must be a file of its own, no link",
    ),
    "a file stands for a folder": (
        lambda run: shutil.rmtree(run / "tensorboard") or (run / "tensorboard").touch(),
        [],
        "tensorboard must be a folder of its own",
    ),
    "the duration is a word": (
        lambda run: edit_json(run / "config.json", duration="abc"),
        [],
        "config.json is damaged",
    ),
    "a period has no end": (lambda run: edit_json(run / "config.json", eval_every="1/0"), [], "config.json is damaged"),
    "the newest is damaged, the model another": (
        lambda run: (run / "checkpoints/30/sha256.json").unlink(),
        ["--config.model.hidden_sizes=(8,)", "--config_change=accept"],
        "checkpoints/20 does not fit the config's model or optimizer: it has",
    ),
    "the format is another": (
        lambda run: [
            edit_json(path / "record/metadata", format=3) or (path / "sha256.json").unlink()
            for path in (run / "checkpoints").iterdir()
        ],
        [],
        "has format 3; this version reads 4",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKDIRS)
def test_a_workdir_that_cannot_be_continued_is_refused(finished, tmp_path, name):
    prepare, flags, message = WORKDIRS[name]
    workdir = shutil.copytree(finished, tmp_path / "run")
    prepare(workdir)
    before = contents(tmp_path)
    result = run_main(f"--workdir={workdir}", *SHORT, *flags, JAX_LOG_COMPILES="1")
    assert message in result.stderr
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert COMPILES not in result.stderr
    said = [line for line in result.stderr.splitlines() if not re.match(r"[IW]\d{4} ", line)]
    assert said[0].startswith("error: ")
    assert len(said) <= 6, result.stderr
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_workdir_in_use_is_refused(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    with run_folder.hold(workdir):
        before = contents(tmp_path)
        check(run_main(f"--workdir={workdir}", *SHORT), f"is in use by another run (process {os.getpid()} on")
    assert contents(tmp_path) == before


def break_record(folder):
    path = next(folder.glob("hundred*train*"))
    path.write_bytes(path.read_bytes()[:-100])


DATA = {
    "a record is cut": (break_record, "cannot be read"),
    "a record is missing": (lambda folder: next(folder.glob("hundred*test*")).unlink(), "rm -r"),
    "the description is cut": (
        lambda folder: (folder / "dataset_info.json").write_bytes((folder / "dataset_info.json").read_bytes()[:50]),
        "is damaged",
    ),
    "the description is missing": (
        lambda folder: (folder / "dataset_info.json").unlink(),
        "is damaged",
    ),
    "the features are missing": (lambda folder: (folder / "features.json").unlink(), "rm -r"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_a_damaged_data_set_is_refused_before_anything_is_compiled(made_data, tmp_path, name):
    prepare, message = DATA[name]
    shutil.copytree(made_data, tmp_path / "data")
    prepare(tmp_path / "data" / "hundred" / "1.0.0")
    before = contents(tmp_path)
    flags = (f"--workdir={tmp_path / 'run'}", "--config.dataset=hundred", "--cache_dir=")
    result = run_main(*flags, TFDS_DATA_DIR=str(tmp_path / "data"), JAX_LOG_COMPILES="1")
    assert message in result.stderr
    assert "tfds build hundred" in result.stderr
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert COMPILES not in result.stderr
    assert contents(tmp_path) == before


def code_for_data(run):
    edit_json(run / "config.json", dataset="huggingface:mnist")


TOOLS = {
    "export: data from elsewhere": (
        ["tools.export", "RUN", "--average=ema", "--out=x"],
        "dataset = 'huggingface:mnist': must be a name",
        code_for_data,
    ),
    "report: damaged metrics": (
        ["tools.report", "RUN"],
        "metrics.jsonl, line 1, is damaged",
        lambda run: (run / "metrics.jsonl").write_text("[1]\n"),
    ),
    "posthoc: damaged scores": (
        ["tools.posthoc", "RUN", "--average=lawa:last=2"],
        "posthoc.jsonl, line 1, is damaged",
        lambda run: (run / "posthoc.jsonl").write_text("{bad\n"),
    ),
    "export: no place": (
        ["tools.export", "RUN", "--average=ema", "--out=/proc/x"],
        "/proc/x",
    ),
    "show_batch: no format": (["tools.show_batch", f"--config={ROOT}/configs/digits.py", "--out=x.xyz"], "xyz"),
    "show_batch: no flag": (
        ["tools.show_batch", f"--config={ROOT}/configs/digits.py", "out.png"],
        "unknown argument 'out.png'",
    ),
    "report: no run": (["tools.report", "no_such_run"], "holds no metrics.jsonl; python main.py"),
    "export: no run": (["tools.export", "no_such_run", "--average=ema", "--out=x"], "holds no run"),
    "export: no average": (["tools.export", "RUN", "--average=emma", "--out=x"], "--average=emma: the checkpoint"),
    "posthoc: no run": (["tools.posthoc", "no_such_run", "--average=lawa"], "holds no run"),
    "posthoc: no kind": (["tools.posthoc", "RUN", "--average=emma"], "'emma' must be one of"),
    "posthoc: no field": (["tools.posthoc", "RUN", "--average=ema:x=3"], "'x' is not one of ema's"),
    "posthoc: no basis": (["tools.posthoc", "RUN", "--average=lawa", "--basis=x"], "--basis=x:"),
    "show_batch: no field": (
        ["tools.show_batch", f"--config={ROOT}/configs/digits.py", "--config.x=3"],
        "x is unknown",
    ),
    "show_batch: no folder": (
        ["tools.show_batch", f"--config={ROOT}/configs/digits.py", "--out=no_such/x.png"],
        "no_such/x.png",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_refuses_what_it_cannot_use(finished, tmp_path, name):
    arguments, message, *prepare = TOOLS[name]
    workdir = shutil.copytree(finished, tmp_path / "run")
    for change in prepare:
        change(workdir)
    command = [sys.executable, "-m", *(argument.replace("RUN", str(workdir)) for argument in arguments)]
    before = contents(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    check(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True), message)
    assert contents(tmp_path) == before


# Notes whatever is unpickled, by anything.
AUDIT = """
import atexit, sys
found = []
sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" else None)
atexit.register(lambda: print("unpickled:", found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("main.py", "--config=configs/digits.py", "--workdir=RUN", *SHORT, "--cache_dir=RUN/cache"),
        ("main.py", "--config=configs/digits.py", "--workdir=RUN", *SHORT, "--cache_dir=RUN/cache", "--mode=eval"),
        ("-m", "tools.export", "RUN", "--average=ema", "--out=RUN/exported"),
        ("-m", "tools.posthoc", "RUN", "--average=ema:half_life=5%", "--max_error=9"),
    ],
)
def test_nothing_that_is_read_of_a_run_is_unpickled(finished, tmp_path, command):
    """Which could run code: checkpoints, snapshots, caches and configs may be somebody else's."""
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "30")  # so that there is something left to train
    arguments = [sys.executable, *(argument.replace("RUN", str(workdir)) for argument in command)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for _ in range(2):  # the second time with what the first has cached
        result = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "unpickled: []" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["flag", "JAX"])
def test_a_compilation_cache_that_others_can_write_is_refused_whoever_chose_it(tmp_path, chosen):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    by_flag = chosen == "flag"
    flags = (f"--workdir={tmp_path / 'run'}", *([f"--cache_dir={cache}"] if by_flag else []))
    result = run_main(*flags, **({} if by_flag else {"JAX_COMPILATION_CACHE_DIR": str(cache)}))
    name = "--cache_dir" if by_flag else "jax_compilation_cache_dir"
    check(result, f"{name}: {cache} belongs to user {os.getuid()} and has mode 777; it must be yours")
    assert list(contents(tmp_path)) == [cache]
