"""The training of benchmarks/peers.py in PyTorch."""

import itertools
from typing import Any

import numpy as np

from benchmarks.peers_jax import Task, Variant, Weights, flatten


def create(task: Task, *, compiled: bool) -> Variant:
    """An ordinary loop in PyTorch; with `compiled`, `torch.compile` compiles the loss."""
    import torch
    from torch.nn import functional
    from torch.optim import swa_utils

    # Layers have the names that linen gives them.

    class CNN(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.Conv_0 = torch.nn.Conv2d(1, 32, 3, padding=1)
            self.Conv_1 = torch.nn.Conv2d(32, 64, 3, padding=1)
            self.Dense_0 = torch.nn.Linear(7 * 7 * 64, 256)
            self.Dense_1 = torch.nn.Linear(256, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for conv in (self.Conv_0, self.Conv_1):
                x = functional.avg_pool2d(functional.relu(conv(x)), 2)
            # Linen flattens with the channels last; that is how they lie in memory, so this moves nothing.
            x = x.permute(0, 2, 3, 1).flatten(1)
            return self.Dense_1(functional.relu(self.Dense_0(x)))

    class ResNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            channels = [3] + [16] * 7 + [32] * 6 + [64] * 6
            for i, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
                stride = 2 if i > 0 and inputs != outputs else 1
                conv = torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
                self.add_module(f"Conv_{i}", conv)
                self.add_module(f"BatchNorm_{i}", torch.nn.BatchNorm2d(outputs))  # linen's 0.9 and 1e-5 by default
            self.Dense_0 = torch.nn.Linear(64, 10)

        def conv_norm(self, i: int, x: torch.Tensor) -> torch.Tensor:
            return getattr(self, f"BatchNorm_{i}")(getattr(self, f"Conv_{i}")(x))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = functional.relu(self.conv_norm(0, x))
            for i in range(1, 19, 2):
                y = self.conv_norm(i + 1, functional.relu(self.conv_norm(i, x)))
                if x.shape != y.shape:
                    x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
                x = functional.relu(x + y)
            return self.Dense_0(x.mean((2, 3)))

    initial = flatten(task.params) | flatten(task.batch_stats)
    model: Any = CNN() if task.model == "cnn" else ResNet()
    model.to(memory_format=torch.channels_last)
    # Its counters of batches stay.
    weights = {torch_name(path): torch.tensor(to_torch(value)) for path, value in initial.items()}
    model.load_state_dict(model.state_dict() | weights)
    averaged = swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(task.decay), use_buffers=bool(task.batch_stats)
    )
    averaged.update_parameters(model)  # the first call only copies: now the average stands at the initial weights
    optimizer = torch.optim.SGD(model.parameters(), task.learning_rate, task.momentum, foreach=True)

    def loss_fn(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(image), label)

    loss_of = torch.compile(loss_fn) if compiled else loss_fn
    batches = itertools.cycle(
        # A view of [batch, channels, height, width] with the channels last in memory.
        [
            (torch.tensor(np.array(image)).permute(0, 3, 1, 2), torch.tensor(np.array(label)).long())
            for image, label in task.batches
        ]
    )

    def advance(num_steps: int) -> float:
        losses = []
        for image, label in itertools.islice(batches, num_steps):
            optimizer.zero_grad()
            loss = loss_of(image, label)
            loss.backward()
            optimizer.step()
            averaged.update_parameters(model)
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def read(module: Any, tree: Any) -> Weights:
        values = module.state_dict()
        return {path: from_torch(np.array(values[torch_name(path)])) for path in flatten(tree)}

    return Variant(
        advance,
        lambda: {
            "params": read(model, task.params),
            "batch stats": read(model, task.batch_stats),
            "average": read(averaged.module, task.params),
        },
    )


def torch_name(path: str) -> str:
    """PyTorch's name of linen's parameter or statistic: "Conv_0/kernel" is "Conv_0.weight"."""
    layer, name = path.split("/")
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return f"{layer}.{names.get(name, name)}"


def to_torch(value: np.ndarray) -> np.ndarray:
    """A weight with its axes in PyTorch's order: outputs and inputs first."""
    return np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 1 else value


def from_torch(value: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
