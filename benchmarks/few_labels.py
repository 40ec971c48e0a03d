"""Does learning from few labels alone reach what PyTorch reaches with the same batches?

    python -m benchmarks.few_labels

Trains the supervised variant of examples/mean_teacher with five seeds, here and by an ordinary loop in PyTorch: the
same network from the same start, the same batches, as many steps. Needs PyTorch, requirements-benchmarks.txt.
"""

import jax
import numpy as np

import train
from benchmarks import measure, peers_torch
from benchmarks.peers_jax import flatten
from examples.mean_teacher.teachers import DURATION, config_of
from runtime import intervals
from tools import finished

NUM_SEEDS = 5
DURATIONS = ("10 steps", DURATION)  # before rounding has grown, and the whole training


def torch_accuracy(experiment: train.Experiment) -> float:
    """The accuracy on test images of a training in PyTorch, in %."""
    import torch
    from torch.nn import functional

    class SmallCNN(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.Conv_0, self.Conv_1 = torch.nn.Conv2d(1, 8, 6, 2), torch.nn.Conv2d(8, 48, 4, 2)
            self.Dense_0, self.Dense_1 = torch.nn.Linear(1200, 256), torch.nn.Linear(256, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for conv in (self.Conv_0, self.Conv_1):
                x = functional.relu(conv(x))
            x = x.permute(0, 2, 3, 1).flatten(1)  # linen flattens with the channels last
            return self.Dense_1(functional.relu(self.Dense_0(x)))

    def tensor(x: jax.Array) -> torch.Tensor:
        return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())

    model, config = SmallCNN(), experiment.config
    start = {peers_torch.torch_name(path): x for path, x in flatten(experiment.state.params).items()}
    model.load_state_dict({name: torch.tensor(peers_torch.to_torch(x).copy()) for name, x in start.items()})
    optimizer = torch.optim.SGD(
        model.parameters(), config.optimizer.learning_rate, config.optimizer.momentum, nesterov=True
    )
    make_batch = jax.jit(lambda data, state: data.batch(state)[0])
    for step in range(config.duration):
        batch = make_batch(experiment.train_data, experiment.state.replace(step=np.int32(step)))
        label = torch.tensor(np.asarray(batch["label"])).long()
        optimizer.zero_grad()
        functional.cross_entropy(model(tensor(batch["image"])[: len(label)]), label).backward()
        optimizer.step()
    test = experiment.eval_data["test"]
    with torch.no_grad():
        predicted = model(tensor(test.normalization(test.images.image))).argmax(1).numpy()
    return 100 * float(np.mean(predicted == test.images.label))


def our_accuracy(experiment: train.Experiment) -> float:
    """The accuracy on test images of the same training here, in %."""
    state, _ = measure.create_training(experiment)(experiment.config.duration)
    return 100 * train.evaluate(experiment, state, ["test"])["test"]["raw"]["accuracy"]


def main() -> None:
    """Trains, prints the table and writes the result."""
    rows, accuracy = [], {}
    for duration in DURATIONS:
        ours, theirs = [], []
        for seed in range(NUM_SEEDS):
            experiment = finished.create_experiment(config_of("supervised", seed, duration))
            theirs.append(torch_accuracy(experiment))
            ours.append(our_accuracy(experiment))  # uses the state up
            print(f"{duration}, seed {seed}: {ours[-1]:.2f} % here, {theirs[-1]:.2f} % in PyTorch", flush=True)
        for name, values in (("here", ours), ("PyTorch", theirs), ("difference", np.subtract(ours, theirs))):
            mean, low, high = intervals.mean_interval(np.array(values))
            rows.append({"duration": duration, "what": name, "mean": mean, "low": low, "high": high})
        accuracy[duration] = {"here": ours, "PyTorch": theirs}
    measure.write("few_labels", rows, accuracy=accuracy)


if __name__ == "__main__":
    main()
