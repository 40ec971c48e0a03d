"""CIFAR-10 with ResNet-20 for one epoch, to compare three sources of an average's batch statistics.

    python main.py --config=configs/cifar10_batch_stats.py --workdir=runs/batch_stats

Six averages of one run: a short and a long horizon (half-lives of 2 % and 20 % of training, 8 and 78 steps), each with
its batch statistics averaged like the weights, copied from the raw ones, and recomputed from 50 training batches.

Test accuracy over 3 seeds, mean and 95 % interval over the seeds (benchmarks/results/cifar10_batch_stats.json):

                       short                        long
    raw                56.6 %  (54.7 .. 58.5)
    average            61.8 %  (60.2 .. 63.4)       60.8 %  (58.6 .. 63.0)
    copy               64.5 %  (62.4 .. 66.5)       43.3 %  (24.3 .. 62.4); the seeds had 46.8, 48.7 and 34.5 %
    recompute          64.6 %  (62.4 .. 66.8)       62.5 %  (60.5 .. 64.6)

    recompute - average  +2.8  (+2.1 .. +3.5)       +1.8   (+1.3 .. +2.2)
    recompute - copy     +0.15 (+0.01 .. +0.29)     +19.2  (+1.0 .. +37.4)

Copied statistics are those of weights that a long average has left behind; averaged ones mix the activations of many
weights, none of which is the average. Recomputed ones belong to the average, and cost 50 batches at each evaluation.
Training takes 270 to 360 s on two cores of an AMD EPYC.
"""

import ml_collections

from configs import cifar10_small, default


def get_config() -> ml_collections.ConfigDict:
    config = cifar10_small.get_config()
    config.duration = "1 epochs"
    config.eval_every = "50%"
    config.checkpoint_every = "100%"

    config.averages.ema.kind = "none"
    for name, half_life in (("short", "2%"), ("long", "20%")):
        for batch_stats in ("average", "copy", "recompute"):
            config.averages[f"{name}_{batch_stats}"] = default.average(
                "ema", half_life=half_life, batch_stats=batch_stats
            )
    return config
