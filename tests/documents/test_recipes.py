"""The Python code of docs/recipes.md, run."""

import json
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.flax
from conftest import ROOT, digits_config, read_metrics
from document import blocks

import input_pipeline
import models
import optimizers
import train
from tools.export import export


def code_with(name: str) -> str:
    [code] = [code for code in blocks(ROOT / "docs" / "recipes.md", "python") if name in code]
    return code


def test_exported_weights_loaded_by_the_recipe_score_what_the_run_says_of_them(tmp_path, monkeypatch):
    train.train_and_evaluate(digits_config(), tmp_path / "run")
    export(tmp_path / "run", "ema", tmp_path / "exported", "latest")
    code = code_with("weights.safetensors")
    assert len(code.splitlines()) == 5
    test = input_pipeline.find_source("digits").load("test")
    names = {"flax": flax, "jnp": jnp, "json": json, "models": models, "pathlib": pathlib, "safetensors": safetensors}
    monkeypatch.chdir(tmp_path)
    exec(code, names | {"images": test.image}, found := {})
    accuracy = np.mean(np.asarray(found["logits"]).argmax(axis=1) == test.label)
    assert accuracy == read_metrics(tmp_path / "run", "ema")[-1]["accuracy"]


def test_an_optimizer_with_two_groups_gives_each_its_own_rate(monkeypatch):
    monkeypatch.setattr(optimizers, "OPTIMIZERS", dict(optimizers.OPTIMIZERS))
    exec(code_with("head_and_body"), vars(optimizers).copy())
    params = {"Conv_0": {"kernel": jnp.ones((1, 1, 2, 2))}, "Dense_0": {"kernel": jnp.ones((2, 2))}}
    gradient = jax.tree.map(lambda p: 4 * p, params)
    tx = optimizers.create_optimizer(
        "head_and_body", schedule="constant", learning_rate=0.5, warmup=0, stable=0, decay=0, clip_norm=0.0,
        gradient_noise=0.0, groups={}, momentum=0.9, nesterov=False, b1=0.9, b2=0.999, weight_decay=0.1,
    )  # fmt: skip
    updates, _ = tx.update(gradient, tx.init(params), params, key=jax.random.key(0))
    after = optax.apply_updates(params, updates)
    # SGD's first step with Nesterov momentum is 1.9 gradients, Adam's 1; both add a tenth of the parameter.
    np.testing.assert_allclose(after["Conv_0"]["kernel"], 1 - 0.5 * (1.9 * 4 + 0.1), rtol=1e-5)
    np.testing.assert_allclose(after["Dense_0"]["kernel"], 1 - 0.05 * (1 + 0.1), rtol=1e-5)
