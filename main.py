"""Trains a model, or scores one, as a config says.

    python main.py --config=configs/digits.py --workdir=runs/digits
    python main.py --config=configs/digits.py --workdir=runs/slow --config.optimizer.learning_rate=0.01
    python main.py --config=configs/digits.py --workdir=runs/digits --mode=eval --checkpoint=best

The first command continues a run that was interrupted, too. Any field of the config can be overridden as in the second;
configs/default.py documents them all. TFDS_DATA_DIR names the folder of prepared data sets.

It ends with status 0 when the run is over, 1 after an error, which it explains in one message, and 75 when it was told
to stop and has saved: the same command continues from there.
"""

import sys

import tools  # noqa: F401  # first: it says what to install where one of the next lines finds nothing

# isort: split
from absl import app, flags
from ml_collections import config_flags

from runtime import hosts, interruption, trackers
from runtime.errors import UserError
from runtime.files import local_path
from runtime.progress import say
from tools import command_line

_CONFIG = config_flags.DEFINE_config_file("config", help_string="File with the config, such as configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: everything it writes goes there.", required=True)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "eval scores a checkpoint of an existing run.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Which one --mode=eval scores.")
_CONFIG_CHANGE = flags.DEFINE_enum(
    "config_change",
    "refuse",
    ["refuse", "accept"],
    "Whether to continue a run although the config is not the one that it was started with.",
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "off"],
    "auto trains as one with the other processes that SLURM, Open MPI, Kubernetes or a TPU pod has started.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no such launcher says it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train as one.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this one, from 0 on.")
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    command_line.CACHE_DIR,
    "Where to keep compiled programs and decoded data sets for later runs; empty: nowhere.",
)
_TRACKER = flags.DEFINE_multi_string("tracker", [], "Where metrics go live, too: wandb, mlflow or MODULE:FUNCTION.")
_DEBUG_NANS = flags.DEFINE_bool("debug_nans", False, "Stop with a traceback where the first NaN comes from.")
flags.mark_flag_as_required("config")
flags.register_validator("workdir", bool, "must name a folder")


def main(argv: list[str]) -> None:
    """Trains or scores, as the flags say."""
    if len(argv) > 1:
        sys.exit(f"error: unknown argument {argv[1]!r}; flags are written --name=value")
    try:
        _run()
        hosts.part()
    except UserError as error:
        interruption.end(f"error: {error}", 1)
    except OSError as error:
        mend = "What was saved is as it was; with that mended, the same command continues from it."
        interruption.end(f"error: {error}. {mend}", 1)
    except interruption.Interrupted as stopped:
        hosts.gather(None)  # all have saved
        message = f"Stopped and saved at step {stopped}. {interruption.how_to_continue()}"
        interruption.end(message, interruption.STATUS)
    except Exception as error:
        interruption.end_others(error)
        raise


def _run() -> None:
    workdir = local_path(_WORKDIR.value, "--workdir")
    chosen = [trackers.find(name) for name in _TRACKER.value]
    if chosen and _MODE.value == "eval":
        raise UserError("--tracker follows a training; leave it out with --mode=eval")
    # Here, so that a wrong flag is reported without waiting for JAX, and signals are heard while it is imported.
    import jax

    hosts.start(_DISTRIBUTED.value, {flag.name: flag.value for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)})
    interruption.follow_others()
    import train
    from reporting import page
    from runtime import caching, clocks, sharding
    from tools import finished

    clocks.count_imports()
    if _DEBUG_NANS.value:
        jax.config.update("jax_debug_nans", True)
    devices = sharding.find_devices(deterministic=_CONFIG.value.get("deterministic", False))
    say(f"{len(devices)} x {devices[0].device_kind}")
    caching.check_chosen()
    if _CACHE_DIR.value:
        enable = caching.enable if _CACHE_DIR.present else caching.enable_if_possible
        say(enable(_CACHE_DIR.value))
    if _MODE.value == "train":
        with trackers.following(workdir, chosen):
            with trackers.following(workdir, [page.keep_up]):  # which ends before the last page is written
                train.train_and_evaluate(_CONFIG.value, workdir, config_change=_CONFIG_CHANGE.value)
            if hosts.first():
                say(page.write(workdir))
    else:
        finished.evaluate_checkpoint(
            _CONFIG.value, workdir, which=_CHECKPOINT.value, config_change=_CONFIG_CHANGE.value
        )


if __name__ == "__main__":
    interruption.listen()
    app.run(main, flags_parser=command_line.parse)
