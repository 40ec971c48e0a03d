"""The training of benchmarks/peers.py in PyTorch."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers_jax import Task, Variant, Weights, blocks, flatten


def create(task: Task, how: str) -> Variant:
    """An ordinary loop in PyTorch, on a GPU if there is one.

    Args:
        task: what to train.
        how: "eager"; "compiled", the loss by `torch.compile`; "CUDA graph", the whole step as one launch.
    """
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
            channels = blocks(task.depth)[0][0]
            self.add_layer(3, channels)
            for features, stride in blocks(task.depth):
                self.add_layer(channels, features, stride)
                self.add_layer(features, features)
                if stride > 1 and task.depth == 18:
                    self.add_layer(channels, features, stride, size=1)
                channels = features
            self.Dense_0 = torch.nn.Linear(channels, 10)

        def add_layer(self, inputs: int, outputs: int, stride: int = 1, size: int = 3) -> None:
            i = len(self._modules) // 2
            self.add_module(f"Conv_{i}", torch.nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False))
            self.add_module(f"BatchNorm_{i}", torch.nn.BatchNorm2d(outputs))  # linen's 0.9 and 1e-5 by default

        def conv_norm(self, i: int, x: torch.Tensor) -> torch.Tensor:
            return getattr(self, f"BatchNorm_{i}")(getattr(self, f"Conv_{i}")(x))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x, i = functional.relu(self.conv_norm(0, x)), 1
            for _, stride in blocks(task.depth):
                y = self.conv_norm(i + 1, functional.relu(self.conv_norm(i, x)))
                i += 2
                if stride > 1 and task.depth == 18:
                    x = self.conv_norm(i, x)
                    i += 1
                elif stride > 1:
                    x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
                x = functional.relu(x + y)
            return self.Dense_0(x.mean((2, 3)))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True  # as its convolutions do, and as JAX does
    torch.backends.cudnn.benchmark = True
    initial = flatten(task.params) | flatten(task.batch_stats)
    model: Any = ResNet() if task.depth else CNN()
    model.to(device, memory_format=torch.channels_last)
    # Its counters of batches stay.
    weights = {torch_name(path): torch.tensor(to_torch(value)) for path, value in initial.items()}
    model.load_state_dict(model.state_dict() | weights)
    move_average = swa_utils.get_ema_multi_avg_fn(task.decay)
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=move_average, use_buffers=bool(task.batch_stats))
    averaged.update_parameters(model)  # the first call only copies: now the average stands at the initial weights
    optimizer = torch.optim.SGD(model.parameters(), task.learning_rate, task.momentum, foreach=True)

    def loss_fn(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=task.dtype == "bfloat16"):
            logits = model(image)
        return functional.cross_entropy(logits.float(), label)

    loss_of = torch.compile(loss_fn) if how == "compiled" else loss_fn
    # A view of [batch, channels, height, width] with the channels last in memory.
    batches = [
        (torch.tensor(np.array(x)).to(device).permute(0, 3, 1, 2), torch.tensor(np.array(y)).long().to(device))
        for x, y in task.batches
    ]
    raw, average = (
        [x for x in module.state_dict().values() if x.is_floating_point()] for module in (model, averaged.module)
    )

    def step(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(image, label)
        loss.backward()
        optimizer.step()
        if how == "CUDA graph":  # AveragedModel asks the host how often it has moved, which a graph cannot
            move_average(average, raw, 0)
        else:
            averaged.update_parameters(model)
        return loss.detach()

    if how == "CUDA graph":
        kept = [x.clone() for x in (*raw, *average)]
        step = capture(step, *batches[0])
        for x, value in zip((*raw, *average), kept, strict=True):
            x.copy_(value)
        for state in optimizer.state.values():
            state["momentum_buffer"].zero_()
    served = itertools.cycle(batches)

    def advance(num_steps: int) -> float:
        return float(torch.stack([step(*batch) for batch in itertools.islice(served, num_steps)]).mean())

    def read(module: Any, tree: Any) -> Weights:
        values = module.state_dict()
        return {path: from_torch(np.array(values[torch_name(path)].cpu())) for path in flatten(tree)}

    return Variant(
        advance,
        lambda: {
            "params": read(model, task.params),
            "batch stats": read(model, task.batch_stats),
            "average": read(averaged.module, task.params),
        },
    )


def capture(step: Callable[..., Any], image: Any, label: Any) -> Callable[..., Any]:
    """A step as a CUDA graph; takes a few steps to warm up, which change the weights."""
    import torch

    image, label = image.clone(), label.clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step(image, label)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(image, label)

    def replay(new_image: Any, new_label: Any) -> Any:
        image.copy_(new_image)
        label.copy_(new_label)
        graph.replay()
        return loss.clone()

    return replay


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
