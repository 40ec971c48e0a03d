"""The keys that a program draws random numbers from, read off its jaxpr: no key is to be drawn from twice."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from runtime.permutation import ROUNDS

MAX_SIZE = 1000  # of other arrays that are followed


def drawn_twice(program: Callable[..., Any], *arguments: Any) -> list[str]:
    """The draws from keys that were drawn from or split before, each as shape and type of what was drawn.

    Follows keys and counts through the program with the values that they have in the arguments; nothing else is
    computed. Of the branches of a condition only one is taken, so they may draw from the same keys. The order of an
    epoch is one function of its key, however often it is asked for a row.

    Raises:
        ValueError: a draw is from a key that depends on something else.
    """
    closed = jax.make_jaxpr(program)(*arguments)
    draws, _ = _run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
    return [str(what) for found in draws.values() if len(found) > 1 for what in sorted(found)]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _known(x: Any) -> Any:
    """A value if it is to be followed, or else None."""
    x = jnp.asarray(x)
    is_count = (x.dtype == bool or jnp.issubdtype(x.dtype, jnp.integer)) and x.size <= MAX_SIZE
    return x if _is_key(x) or is_count else None


Draws = collections.defaultdict[bytes, list[str]]


def _run(jaxpr: Any, consts: Any, arguments: Any) -> tuple[Draws, list[Any]]:
    """What was drawn from each key, and the outputs, None where they are not known."""
    draws: Draws = collections.defaultdict(list)
    values = dict(zip(jaxpr.constvars, map(_known, consts), strict=True))
    values |= zip(jaxpr.invars, (x if x is None else _known(x) for x in arguments), strict=True)
    for eqn in jaxpr.eqns:
        inputs = [_known(x.val) if isinstance(x, core.Literal) else values[x] for x in eqn.invars]
        outputs = _run_equation(eqn, inputs, draws)
        values |= zip(eqn.outvars, outputs, strict=True)
    return draws, [_known(x.val) if isinstance(x, core.Literal) else values[x] for x in jaxpr.outvars]


def _run_equation(eqn: Any, inputs: list[Any], draws: Draws) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    takes_keys = any(_is_key(x.aval) for x in eqn.invars)
    makes_keys = any(_is_key(x.aval) for x in eqn.outvars)
    nothing = [None] * len(eqn.outvars)

    def inner(jaxpr: Any, arguments: list[Any]) -> tuple[Draws, list[Any]]:
        return _run(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), arguments)

    if name == "scan" and takes_keys:
        constant, carry = (params[f"num_{kind}"] for kind in ("consts", "carry"))
        fixed, state, each = inputs[:constant], inputs[constant : constant + carry], inputs[constant + carry :]
        for i in range(params["length"]):
            found, outputs = inner(params["jaxpr"], [*fixed, *state, *(x if x is None else x[i] for x in each)])
            state = outputs[:carry]
            _add(draws, found)
        return nothing
    if name == "cond":
        branches = [inner(jaxpr, inputs[1:])[0] for jaxpr in params["branches"]]
        _add(draws, {key: max((found[key] for found in branches), key=len) for key in set().union(*branches)})
        return nothing
    if name in ("scan", "while"):
        return nothing
    for field in ("jaxpr", "call_jaxpr"):
        if field in params:
            found, outputs = inner(params[field], inputs)
            _add(draws, found)
            return outputs
    if takes_keys and (name == "random_split" or not makes_keys):
        [keys] = (x for x, var in zip(inputs, eqn.invars, strict=True) if _is_key(var.aval))
        if keys is None:
            raise ValueError(f"{name} takes a key that is not followed")
        for key in jax.random.key_data(keys).reshape(keys.size, -1):
            what = f"{name} {params.get('shape')}"
            # Who splits in the same way gets the same keys, of which each may be drawn from once.
            if what != f"random_bits ({ROUNDS},)" and (name != "random_split" or what not in draws[bytes(key)]):
                draws[bytes(key)].append(what)
    if any(x is None for x in inputs) or (not makes_keys and max(var.aval.size for var in eqn.outvars) > MAX_SIZE):
        return nothing
    if takes_keys and not makes_keys:
        return nothing
    outputs = eqn.primitive.bind(*inputs, **params)
    return [_known(x) for x in (outputs if eqn.primitive.multiple_results else [outputs])]


def _add(draws: Draws, others: Any) -> None:
    for key, found in others.items():
        draws[key] += found
