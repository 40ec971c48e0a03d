"""The names that torchvision and timm give to the arrays of models that are in models.py, too, there and back.

Residual networks have the same names in both libraries, vision transformers are timm's. The names of a model here are
those that Flax gives: layers of a class, numbered as they are created. `read` goes from theirs to ours, `write` back,
by the same tables.
"""

from collections.abc import Collection, Mapping

import numpy as np

from runtime.errors import UserError

KNOWN = "ResNet-18, 34, 50 and 101 of torchvision and timm, and vision transformers of timm with a class token"
# By depth, the blocks of each stage, and the convolutions of a block beside that of its shortcut.
RESNETS = {18: ((2, 2, 2, 2), 2), 34: ((3, 4, 6, 3), 2), 50: ((3, 4, 6, 3), 3), 101: ((3, 4, 23, 3), 3)}
HEADS = ("fc.", "head.")  # which a file may lack
IGNORED = "num_batches_tracked"  # no part of what a model computes
HEAD_SIZE = 64  # features of an attention head, in all of these

# A name of theirs, and the paths of ours whose arrays it holds, one after another along its first axis.
Table = dict[str, tuple[str, ...]]


def _layer(theirs: str, ours: str, *, bias: bool = True) -> Table:
    """A convolution or a dense layer."""
    names = {"weight": "kernel"} | ({"bias": "bias"} if bias else {})
    return {f"{theirs}.{there}": (f"params/{ours}/{here}",) for there, here in names.items()}


def _norm(theirs: str, ours: str) -> Table:
    """Scale and offset of a normalisation."""
    return {f"{theirs}.weight": (f"params/{ours}/scale",), f"{theirs}.bias": (f"params/{ours}/bias",)}


def _batch_norm(theirs: str, ours: str) -> Table:
    """The same with batch statistics."""
    stats = {"running_mean": "mean", "running_var": "var"}
    return _norm(theirs, ours) | {f"{theirs}.{name}": (f"batch_stats/{ours}/{stats[name]}",) for name in stats}


def _resnet(depth: int) -> Table:
    """A residual network of torchvision or timm."""
    blocks, size = RESNETS[depth]
    pairs = [("conv1", "bn1")]
    for stage, number in enumerate(blocks, 1):
        for block in range(number):
            name = f"layer{stage}.{block}"
            pairs += [(f"{name}.conv{i}", f"{name}.bn{i}") for i in range(1, size + 1)]
            if block == 0 and (stage > 1 or size == 3):  # the shape changes
                pairs.append((f"{name}.downsample.0", f"{name}.downsample.1"))
    table = _layer("fc", "Dense_0")
    for i, (conv, norm) in enumerate(pairs):
        table |= _layer(conv, f"Conv_{i}", bias=False) | _batch_norm(norm, f"BatchNorm_{i}")
    return table


def _vit(depth: int) -> Table:
    """A vision transformer of timm."""
    table: Table = {"cls_token": ("params/class_token",), "pos_embed": ("params/position_embedding",)}
    table |= _layer("patch_embed.proj", "Conv_0")
    for i in range(depth):
        name, attention = f"blocks.{i}", f"params/MultiHeadDotProductAttention_{i}"
        table |= _norm(f"{name}.norm1", f"LayerNorm_{2 * i}") | _norm(f"{name}.norm2", f"LayerNorm_{2 * i + 1}")
        for there, here in (("weight", "kernel"), ("bias", "bias")):
            table[f"{name}.attn.qkv.{there}"] = tuple(f"{attention}/{x}/{here}" for x in ("query", "key", "value"))
            table[f"{name}.attn.proj.{there}"] = (f"{attention}/out/{here}",)
        # The second is called with the first's output, and Python makes what it calls before what it calls it with.
        table |= _layer(f"{name}.mlp.fc1", f"Dense_{2 * i + 1}") | _layer(f"{name}.mlp.fc2", f"Dense_{2 * i}")
    return table | _norm("norm", f"LayerNorm_{2 * depth}") | _layer("head", f"Dense_{2 * depth}")


def _tables(names: Collection[str]) -> list[Table]:
    """The tables of the models that these names, theirs or ours, could be of."""
    depth = sum(name.endswith(("attn.proj.bias", "/out/bias")) for name in names)
    return [*map(_resnet, RESNETS), *([_vit(depth)] if depth else [])]


def _to_ours(path: str, x: np.ndarray) -> np.ndarray:
    """An array as Flax has it: inputs before outputs, and attention by its heads."""
    if x.ndim in (2, 4):
        x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
    if "Attention" not in path or path.endswith("out/bias") or not x.ndim:
        return x
    axis = 0 if path.endswith("out/kernel") else x.ndim - 1
    if x.shape[axis] % HEAD_SIZE:
        return x  # of another shape than ours in any case
    return x.reshape(*x.shape[:axis], -1, HEAD_SIZE, *x.shape[axis + 1 :])


def _to_theirs(path: str, x: np.ndarray) -> np.ndarray:
    """The inverse of `_to_ours`."""
    if "Attention" in path and not path.endswith("out/bias"):
        axis = 0 if path.endswith("out/kernel") else x.ndim - 2
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    if x.ndim in (2, 4):
        x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    return x


def read(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Arrays of another library by the paths of ours, such as "params/Conv_0/kernel".

    Args:
        arrays: by their names. Those that the model here does not have keep them.
        source: of the arrays, for the message.

    Raises:
        UserError: the names are those of no model in the tables.
    """
    tables = _tables(arrays)
    fitting = [table for table in tables if all(name in arrays or name.startswith(HEADS) for name in table)]
    if not fitting:
        nearest = max(tables, key=lambda table: len(table.keys() & arrays.keys()))
        lacks = next(name for name in nearest if name not in arrays and not name.startswith(HEADS))
        close = f"; of the nearest of them it lacks {lacks}" if nearest.keys() & arrays.keys() else ""
        raise UserError(
            f"{source} has names that are not known, such as {', '.join(sorted(arrays)[:3])}. Known are those of "
            f"tools.export, of {KNOWN}{close}"
        )
    table, ours = max(fitting, key=len), dict[str, np.ndarray]()
    for name, x in arrays.items():
        if name in table:
            parts = zip(table[name], np.array_split(x, len(table[name])) if x.ndim else [x], strict=False)
            ours |= {path: _to_ours(path, part) for path, part in parts}
        elif not name.endswith(IGNORED):
            ours[name] = x
    return ours


def write(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `read`, without what it leaves out.

    Raises:
        UserError: they are those of no model in the tables.
    """
    for table in _tables(arrays):
        if {path for paths in table.values() for path in paths} == arrays.keys():
            theirs = {name: [_to_theirs(path, arrays[path]) for path in paths] for name, paths in table.items()}
            return {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in theirs.items()}
    raise UserError(f"--format=torch: the model is none of those whose names are known: {KNOWN}")
