"""What a user may get wrong is refused in one message, without a traceback, and with nothing changed on disk."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, contents, run_main
from refusals import COMPILES, check

# What is wrong with each, and what would be right.
FIELDS = {
    "sed=1": "sed is unknown; did you mean seed?",
    "seed=one": "seed = 'one': must be of type int, such as 0",
    "seed=-1": "seed = -1: must be in [0, 2**32)",
    "dataset=no_such_set": "neither digits nor a TFDS data set; see https://",
    "dataset=mnits": "did you mean mnist",
    "dataset=../../mnist": "dataset = '../../mnist': must be a name",
    "dataset=huggingface:mnist": "dataset = 'huggingface:mnist': must be a name",
    "splits=train": "splits = ('train',): must be two strings, as in ('train', 'test')",
    "splits=('train[:9%]','test')": "'digits' is neither a folder nor a TFDS set; leave it at its default",
    "num_validation=-1": "num_validation = -1: must be a finite number of at least 0",
    "num_validation=901": "num_validation = 901: must be below the 901 training images",
    "num_validation=900": "batch_size = 32: must be at most 1, the number of training images of digits without num_val",
    "label_noise=1.5": "label_noise = 1.5: must be in [0, 1)",
    "init_from=no_such_run": "init_from = 'no_such_run' does not exist; must be the --workdir of a run, or a safetens",
    "init_from=README.md": "init_from = 'README.md' is no file of weights; must be the --workdir of a run, or a safe",
    "init_from=docs": "init_from = 'docs' holds no checkpoint of a run and no weights; must be the --workdir of a run",
    "init_skip=Dense_0": "init_skip = ('Dense_0',): init_from is empty; leave it at its default",
    "init_skip=3": "init_skip = (3,): must be names, as ('Dense_0',)",
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
    "best_metric=error": "best_metric = 'error': must be empty or one of 'accuracy', 'loss', the metrics of its train.T"
    "ask; a score_fn may return it, but Task.metrics has no direction for it",
    "profile=(3,2)": "profile = (3, 2): must be two integers, (first, end) with first below end",
    "profile=(3": "profile = ('(3',): must be two integers",
    "profile=(3,": "profile = '(3,': must be of type tuple, such as (0, 0)",
    "profile=(9000,9001)": "profile = (9000, 9001): training ends at step 1127",
    "loss.gamma=3": "loss.gamma is unknown; the loss of task 'classification' has label_smoothing, l2_penalty",
    "model.kernels=3": "model.kernels is unknown; model 'mlp' has dtype, hidden_sizes, name",
    "task=clasification": "a new one in train.TASKS or examples/; did you mean 'classification'?",
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
    "optimizer.warmup=200%": "optimizer.warmup = '200%': too long for the training of 1127 steps",
    "augment.cutout=99999999999": "augment.cutout = 99999999999: must be in [0, 1000]",
    "augment.cutout=8": "augment.cutout = 8: must be below the larger side of the 8 x 8 pixels of the images",
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
    wrong = ("sed=1", "seed=one", "averages.slow.tau=1", "label_noise=1.5", "optimizer.name=adam")
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
    assert result.stderr == f"error: {missing} must be given; --help shows how it is used\n"


CONFIGS = {
    "config.averages['a/b'] = default.average('ema')": "averages.a/b: the name must be letters, digits and _",
    "config.averages.raw = default.average('ema')": "averages.raw: the name must be letters, digits and _, and neither",
    "config.averages.x = 3": "averages.x = 3: must be a dict such as default.average",
    "del config.averages; config.averages = 3": "averages = 3: must be a dict",
    "config.averages.ema = {'kind': 'ema', 'decya': 0.9}": "averages.ema.decya is unknown; did you mean",
    "del config['optimizer']": "optimizer.name is missing; its default is 'sgd'",
    "del config['model']": "model.name is missing; its default is 'mlp'",
    "config.optimiser = 3": "optimiser is unknown",
    "del config['seed']; config.seed = None": "seed = None is of type NoneType; must be of type int, such as 0",
    "del config['seed']; config.seed = True": "seed = True is of type bool; must be of type int, such as 0",
    "return {}": "get_config() of the file that --config names must return an ml_collections.ConfigDict",
    "return 3 +": "is no Python: invalid syntax",
    "return config\n\ndel get_config\n\ndef other():": "has no get_config(), as configs/digits.py has",
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
