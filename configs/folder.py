"""Image files in a folder of your own: ResNet-18 with an EMA, from scratch.

    python main.py --config=configs/folder.py --workdir=runs/photos --config.dataset=folder:photos

The files are photos/train/CLASS/*.jpg and photos/test/CLASS/*.jpg, of any size and in any usual format. A tenth of what
there is makes a test set. What is to be chosen by looking at results, such as the length of training, is better chosen
on images set aside, `--config.num_validation=500`.

Results: none are claimed, for they depend on the images. With few of them, a network that others have trained on many
will be better than one that starts from nothing.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "folder:photos"
    config.image_size = 128
    config.batch_size = 64
    config.duration = "30 epochs"

    config.augment.flip = True  # not where left and right make a difference

    config.model.name = "resnet"
    config.model.depth = 18
    config.model.stem = "imagenet"
    config.model.zero_init_residual = True

    config.loss.label_smoothing = 0.1

    config.optimizer.learning_rate = 0.05
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5%"

    config.averages.ema = default.average("ema", half_life="2%")
    return config
