"""Image files in a folder of your own: a ResNet-50 that others have trained, with a last layer for your classes.

    python main.py --config=configs/finetune.py --workdir=runs/photos --config.dataset=folder:photos \
        --config.init_from=resnet50

`resnet50` holds `model.safetensors`, as timm and torchvision name the weights; docs/finetune.md says how to have it,
and what else there is to start from. Lower layers move less than higher ones;
`--config.optimizer.groups.layer0.factor=0.0` freezes the first of them, and with the one group
`default.group("(Conv|BatchNorm)_", factor=0.0)` only the last layer is trained.

Results: not measured; they depend on the images.
"""

import ml_collections

from configs import default, folder


def get_config() -> ml_collections.ConfigDict:
    config = folder.get_config()
    config.init_from = "resnet50"
    config.init_skip = ("Dense_0",)
    config.image_size = 224
    config.duration = "10 epochs"

    config.model.depth = 50
    config.model.zero_init_residual = False

    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 1e-3
    layers, first = [], 0
    for convolutions in (1, 10, 13, 19, 10):  # of the first layer, and of the four stages
        numbers = "|".join(map(str, range(first, first + convolutions)))
        layers.append(f"(Conv|BatchNorm)_({numbers})/")
        first += convolutions
    config.optimizer.groups = default.layerwise(0.7, layers)

    config.averages.ema = default.average("ema", half_life="5%")
    return config
