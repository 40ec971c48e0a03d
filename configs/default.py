"""Every field of a config, with its default and its meaning.

An experiment is a file in this folder that starts from `default.get_config()` and sets the fields that differ. The
command line can override any field: `--config.optimizer.learning_rate=0.01`.

A duration is a string: "500 steps", "10 epochs", "60000 examples" or "2%" (of training). It is turned into steps once,
after all overrides, with the exact fractions kept; the resolved numbers are printed and stored in `config.json`.
Nothing is derived in a config file: it would go stale under an override.
"""

from typing import Any

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Determines everything random: initial parameters, order and augmentation of images, dropout, noise, and the choice
    # of validation images.
    config.seed = 0

    # "digits" (8x8, part of scikit-learn, no download), the name of a TFDS image-classification set such as "mnist";
    # "folder:PATH" for image files PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg; or "arrays:FILE.npz" for NumPy
    # arrays, np.savez("FILE.npz", train_image=..., train_label=..., test_image=..., test_label=...). See docs/data.md.
    config.dataset = "digits"
    # The images to train and to test on: of a TFDS set as it writes them, ("train[:80%]", "train[80%:]") if it has no
    # test images; of a folder, the names of those in it.
    config.splits = ("train", "test")
    # Side in pixels that images of different sizes are brought to; 0: they have one size and stay as they are.
    config.image_size = 0
    # Whether to train without image files that cannot be read, instead of ending with their names.
    config.skip_damaged = False
    # Training images set aside. If there are any, curves and the best checkpoint come from them, and the test set is
    # scored once, at the end.
    config.num_validation = 0
    # What is minimised, on what data, and what is reported: a key of `train.TASKS`, or a fork, "examples.NAME.train".
    config.task = "classification"

    # What the data of a task declare themselves. For images: `mode`, "device" for a copy on every device, "stream" for
    # reading them as they are needed, "auto" for the former if they fit; and `workers`, the processes that read a
    # stream, 0 for threads of this one.
    config.data = ml_collections.ConfigDict()

    # Share of the training labels replaced by a uniformly drawn other class; 0.4 is a setting from the literature.
    config.label_noise = 0.0

    # Weights to start from instead of random ones (docs/finetune.md): the workdir of a run, whose latest checkpoint or
    # snapshot has them; or a safetensors file, or its folder. Optimizer and averages start anew from them.
    config.init_from = ""
    config.init_weights = "raw"  # of a run: "raw" or the name of an average
    # What stays random, by its path or the beginning of it, in whole names: ("Dense_1",) has "Dense_1/kernel" and not
    # "Dense_10/kernel". Paths are those of `optimizer.groups`, whose `match` is a regular expression.
    config.init_skip = ()

    # Images per step, over all devices together.
    config.batch_size = 128
    # At most so many images per step of evaluation; it affects only the last bits of a loss.
    config.eval_batch_size = 1000
    # Number of equal parts into which a step's images are split, to be computed one after another and save memory.
    # Optimizer and averages still move once a step. Batch norm sees each part separately.
    config.accumulate = 1
    # The length of training, and how often to log training metrics, to evaluate and to save; all three also happen at
    # the end.
    config.duration = "10 epochs"
    config.log_every = "2%"
    config.eval_every = "10%"
    # How often to call the task's `evaluate`, if it has one, for metrics of whole sets; empty: with every evaluation.
    config.evaluate_sets_every = ""
    config.checkpoint_every = "10%"
    # How often to keep raw and averaged weights permanently; empty: never. From them `python -m tools.posthoc` makes
    # averages of other lengths after training.
    config.snapshot_every = ""

    # Number of latest checkpoints to keep. The best one is kept as well: the one whose evaluation of `best_curve` had
    # the best `best_metric`. `best_curve` is "raw" or the name of an average; empty: "ema", or else the first average.
    # `best_metric` is one of the task's `metrics`, such as "accuracy"; empty: the first. Of equals the first counts.
    config.keep_checkpoints = 3
    config.best_curve = ""
    config.best_metric = ""

    # Largest number of steps per dispatch. 1: single steps; more: chunks that the device runs by itself, up to the next
    # step at which something is due or for about five seconds; 0: whichever is faster. Chunks differ from single steps
    # in the last bits; the size of the chunks makes no difference.
    config.steps_per_dispatch = 0

    # Whether GPUs are to leave out what is not reproducible to the bit: then the same command gives the same numbers
    # again, and steps take a little longer (docs/accelerators.md). Without GPUs everything is reproducible as it is.
    config.deterministic = False

    # Steps to trace with JAX's profiler into WORKDIR/profile, (first, end), counted from 0, the end excluded; (0, 0):
    # none. It rarely crashes a process, on several GPUs in particular; the run then goes on from its last checkpoint,
    # but without a trace of steps before it.
    config.profile = (0, 0)

    # A step with a non-finite loss or gradient is rejected: it leaves parameters, optimizer and averages as they are.
    # Training ends with an error if so many in a row were rejected when it next logs, evaluates or saves.
    config.max_rejected_steps = 100

    # Random changes to the training images; 0 or False turns one off.
    config.augment = ml_collections.ConfigDict()
    # Smallest share of its area that a random crop of an image file has before it is brought to `image_size`; 1: the
    # centre, as in evaluation. Without effect where images have one size.
    config.augment.resized_crop = 0.08
    config.augment.flip = False  # left to right, with probability 1/2; not for digits and letters
    config.augment.crop_padding = 0  # pixels to pad on each side, then crop to the original size; 4 is usual on CIFAR
    config.augment.cutout = 0  # side of a blanked square, in pixels; 16 for CIFAR-10, 8 for CIFAR-100 in the paper
    config.augment.erasing = 0.0  # probability of blanking a rectangle; 0.5 in the paper, 0.25 is usual on ImageNet
    config.augment.mixup = 0.0  # parameter of the beta distribution; 1 on CIFAR in the paper, 0.2 on ImageNet
    config.augment.cutmix = 0.0  # the same, 1 in the paper; with mixup as well, each step draws one of the two
    config.augment.rand_augment = 0  # operations of RandAugment on each image, usually 2
    config.augment.magnitude = 9  # of these operations, from 0 to 10

    # "mlp", "cnn", "small_cnn", "fast_cnn", "resnet", "wide_resnet" or "vit"; see models.py. Fields that the
    # model does not have must keep their defaults.
    config.model = ml_collections.ConfigDict()
    config.model.name = "mlp"
    config.model.dtype = "float32"  # or "bfloat16": of the computation; parameters and averages stay float32
    config.model.hidden_sizes = (256, 256)  # mlp
    config.model.batch_norm = False  # cnn
    config.model.depth = 20  # resnet: 18, 20, 34, 50, 56 or 101; wide_resnet: 28 and others; vit: usually 12
    config.model.width = 1  # fast_cnn, resnet: 1; wide_resnet: 10; vit: 1, 2 and 4 are the sizes Ti, S and B
    config.model.mirror = False  # fast_cnn: whether evaluation averages over an image and its mirror image
    config.model.zero_init_residual = False  # resnet: each block starts as an identity
    config.model.stem = "cifar"  # resnet: or "imagenet", whose first layers make the sides a quarter of the image's
    config.model.patch = 4  # vit: side of a patch in pixels
    config.model.dropout = 0.0  # all but mlp, small_cnn and fast_cnn
    config.model.stochastic_depth = 0.0  # resnet, vit: share of the images that skip the last block; others in between

    # Training minimises cross-entropy against smoothed labels, plus half the L2 penalty times the sum of the squared
    # weights (biases and normalisation excepted). The metric "loss" remains the plain negative log-likelihood; the
    # minimised value is the metric "objective".
    config.loss = ml_collections.ConfigDict()
    config.loss.label_smoothing = 0.0
    config.loss.l2_penalty = 0.0

    # "sgd", "adamw", "lion" or "muon"; see optimizers.py. Fields that the optimizer does not have must keep their
    # defaults.
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1  # at its peak
    config.optimizer.momentum = 0.9  # sgd; muon, usually 0.95
    config.optimizer.nesterov = False  # sgd; muon, usually True
    config.optimizer.b1 = 0.9  # adamw; lion; the parameters that muon leaves to Adam
    config.optimizer.b2 = 0.999  # the same; lion, usually 0.99
    # Decoupled: a step subtracts this times the learning rate of every kernel; biases and normalisation are excepted.
    # With SGD and a momentum of 0.9, ten times a `loss.l2_penalty` has about the effect of that penalty.
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0  # largest global norm of the gradient; 0: no limit
    config.optimizer.gradient_noise = 0.0  # variance of Gaussian noise on the gradient at step 0; falls as t ** -0.55
    # "constant"; "cosine", to 0 at the end; "one_cycle", up and down along cosines; "wsd", with a linear decay at last.
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = "0 steps"  # rise to the peak, part of the training time; one_cycle: usually "30%"
    config.optimizer.decay = "20%"  # wsd: length of the decay
    # Parameters that move otherwise than the others: `config.optimizer.groups.NAME = default.group("encoder/", ...)`.
    config.optimizer.groups = ml_collections.ConfigDict()

    # The weight averages, by name: any number of them, all evaluated with the raw weights. `kind = "none"` removes one.
    # A config file adds another with `config.averages.NAME = default.average(...)`; any name but "raw" and "train".
    config.averages = ml_collections.ConfigDict()
    config.averages.ema = average("ema")
    config.recompute_batches = 50  # training batches for the statistics of each average with "recompute"
    return config


def group(match: str, **fields: Any) -> ml_collections.ConfigDict:
    """Parameters that move otherwise than the others, with the fields below that differ: `group("head/", factor=2.0)`.

    The regular expression `match` is for the beginning of their paths; the first group that fits has a parameter.
    """
    config = ml_collections.ConfigDict({"match": match})
    config.factor = 1.0  # of the learning rate; 0: they stay as they are, and so does batch norm with such a path
    config.weight_decay_factor = 1.0  # of `optimizer.weight_decay`
    config.clip_norm = 0.0  # largest norm of their gradient; 0: no limit but `optimizer.clip_norm`, that of all
    config.every = 1  # updates from one of theirs to the next; in between the optimizer forgets their gradients
    return ml_collections.ConfigDict(config.to_dict() | fields)


def layerwise(decay: float, layers: list[str]) -> dict[str, ml_collections.ConfigDict]:
    """A group for each layer, from the input up, whose rate is `decay` times that of the next, or of what is above."""
    return {f"layer{i}": group(match, factor=decay ** (len(layers) - i)) for i, match in enumerate(layers)}


def average(kind: str, **fields: Any) -> ml_collections.ConfigDict:
    """A weight average: `average("ema", half_life="5%")`.

    Args:
        kind: "ema", "warmup_ema", "running_mean", "polynomial_decay_mean", "power_ema", "soft_update",
            "cosine_update" or "hard_update"; averaging.py explains their uses.
        **fields: the fields below that differ. Fields that the kind does not have must keep their defaults.
    """
    config = ml_collections.ConfigDict()
    config.kind = kind
    config.decay = 0.999  # ema, warmup_ema: per step, in [0, 1)
    config.half_life = ""  # ema, warmup_ema: a duration, within which a weight halves; if not empty it sets `decay`
    config.debias = True  # ema: exact bias correction: the average forgets the initial parameters
    config.eta = 3.0  # polynomial_decay_mean
    config.width = 0.1  # power_ema: standard deviation of the age of the weights, as a share of training so far
    config.tau = 0.005  # soft_update: step size; cosine_update: that at its start
    config.duration = "100%"  # cosine_update: until it comes to rest
    config.period = "1000 steps"  # hard_update: from copy to copy

    # When it moves. A running_mean with a start is a tail mean; with `every="1 epochs"` as well it is SWA.
    config.start = "0 steps"  # until then it is the raw weights
    config.every = "1 steps"  # decay, half-life, duration keep their meaning; eta, width and tau count these steps
    config.restart_every = ""  # from beginning to beginning, for learning rates that restart; empty: never
    # Its batch-norm statistics: "average", as the weights; "copy", the raw ones; "recompute", from training batches.
    config.batch_stats = "average"
    return ml_collections.ConfigDict(config.to_dict() | fields)
