"""ImageNet with ResNet-50: the recipe of the literature for 90 epochs.

    python main.py --config=configs/imagenet.py --workdir=runs/imagenet

The images are files, imagenet/train/CLASS/*.JPEG and imagenet/val/CLASS/*.JPEG. SGD with Nesterov momentum, batches of
1,024, and a learning rate that rises to 0.1 for each 256 images of a batch in five epochs, as Goyal et al. 2017 have it
(arXiv:1706.02677). It then falls along a cosine instead of in steps, and labels are smoothed, as He et al. 2019 have it
(arXiv:1812.01187). Batch norm sees the whole batch; on each GPU there it sees 32 images.

The archive of the validation images has no folders: sort them into those of their classes first. With TFDS, it is
--config.dataset=imagenet2012 --config.splits="('train', 'validation')". On more than six cores, give
--config.data.workers=N for N of them; docs/data.md says how many images a core reads.

Today's recipes train longer and change the images more. Each change is a line:

    config.augment.rand_augment = 2
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.augment.erasing = 0.25
    config.model.stochastic_depth = 0.05

Results: it has not been trained to the end here; it needs accelerators (112,603 steps of about 25 TFLOP). What the
literature reports is 76 to 77 % on one crop of 224 x 224 pixels: 76.4 % in Goyal et al., with a rate that falls in
steps. Cosine and smoothing added about a point in He et al., to another form of the network and at 120 epochs.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.dataset = "folder:imagenet"
    config.splits = ("train", "val")
    config.image_size = 224
    config.batch_size = 1024
    config.duration = "90 epochs"
    config.log_every = "100 steps"
    config.eval_every = "1 epochs"
    config.checkpoint_every = "1 epochs"

    config.augment.flip = True

    config.model.name = "resnet"
    config.model.depth = 50
    config.model.stem = "imagenet"
    config.model.zero_init_residual = True
    config.model.dtype = "bfloat16"

    config.loss.label_smoothing = 0.1
    config.loss.l2_penalty = 1e-4  # the weight decay of the literature, which is not decoupled

    config.optimizer.learning_rate = 0.4  # 0.1 for each 256 images of a batch
    config.optimizer.nesterov = True
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5.6%"  # 5 epochs

    config.averages.ema = default.average("ema", half_life="1%")
    return config
