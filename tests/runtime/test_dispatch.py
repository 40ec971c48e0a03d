import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import copy, create_dispatcher, create_experiment, digits_config, read_metrics

import train
from runtime import dispatch, run_config
from runtime.errors import UserError
from train_state import Average

CNN = {"model__name": "cnn", "model__hidden_sizes": (256, 256), "model__batch_norm": True, "model__dropout": 0.25}


FIRST = 25  # step: of 901 images in batches of 32, step 28 takes the last of one epoch and the first of the next


def run(experiment, cuts, chunked=True, max_steps=0):
    """State and sums after advancing to each of the steps in turn, in chunks as long as `max_steps` allows."""
    advance = create_dispatcher(experiment, chunked, max_steps)
    advance._next = max_steps or 2**31 - 1  # whatever the clock says
    state, sums, step = copy(experiment.state), copy(experiment.sums), FIRST
    state = state.replace(step=state.step + FIRST)
    for end in (FIRST + cut for cut in cuts):
        state, sums, _ = advance(state, sums, experiment.train_data, step, end)
        step = end
    return state.replace(rng=jax.random.key_data(state.rng)), sums


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    config = digits_config(augment__crop_padding=1, **CNN)
    config.averages.slow = {"kind": "ema", "decay": 0.9, "every": "4 steps", "batch_stats": "copy"}
    experiment = create_experiment(config)
    assert 28 * config.batch_size < len(experiment.train_data.images) < 29 * config.batch_size
    return experiment


@pytest.mark.slow
def test_a_chunk_computes_what_single_steps_do_but_for_rounding(experiment):
    """Across the end of an epoch, and with a batch that has images of both."""
    chunked, single = (run(experiment, [8], chunked=chunked) for chunked in (True, False))
    # Eight steps amplify a float32 rounding that the compiler places otherwise by some ten each.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), chunked, single)
    assert int(chunked[0].step) == int(single[0].step) == FIRST + 8
    assert int(chunked[1]["loss"][1]) == 8 * 32


@pytest.mark.parametrize("chunked", [pytest.param(True, marks=pytest.mark.slow), False])
def test_how_steps_are_cut_changes_no_bit(experiment, chunked):
    whole, cut = run(experiment, [9], chunked=chunked), run(experiment, [1, 2, 6, 9], chunked=chunked, max_steps=3)
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_a_chunk_fetches_and_sends_nothing(experiment):
    state, sums = run(experiment, [2])
    state = state.replace(rng=jax.random.wrap_key_data(state.rng))
    advance = create_dispatcher(experiment)
    compiled = advance.compiled_for(state, sums).lower(state, sums, experiment.train_data, np.int32(3)).compile()
    text = compiled.as_text()
    assert "while(" in text
    for word in ("infeed", "outfeed", "send(", "recv(", "callback"):
        assert word not in text
    num_steps = jax.device_put(np.int32(3))
    with jax.transfer_guard("disallow"):
        state, _ = compiled(state, sums, experiment.train_data, num_steps)
    assert int(state.step) == FIRST + 5


def test_training_compiles_once_whatever_the_chunks_and_nothing_after_the_first_evaluation(tmp_path):
    compiled = []  # how many curves had been evaluated by then

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            metrics = tmp_path / "metrics.jsonl"
            compiled.append(metrics.read_text().count('"curve": "ema-raw"') if metrics.exists() else 0)

    config = digits_config(
        duration="3 epochs",
        log_every="7 steps",
        eval_every="1 epochs",
        checkpoint_every="11 steps",
        snapshot_every="30%",
    )
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train.train_and_evaluate(config, tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(read_metrics(tmp_path, "ema")) == 3
    assert compiled
    assert max(compiled) == 0


@pytest.mark.slow
def test_a_continued_run_compiles_its_training_program_once_too(tmp_path, monkeypatch):
    programs = []

    class Remembering(dispatch.Dispatcher):
        def compiled_for(self, state, sums):
            program = super().compiled_for(state, sums)
            if program not in programs:
                programs.append(program)
            return program

    monkeypatch.setattr(train, "Dispatcher", Remembering)
    train.train_and_evaluate(digits_config(), tmp_path)
    # It starts from a restored state, with an average that it did not have.
    config = digits_config(duration="40 steps")
    config.averages.slow = config.averages.ema
    train.train_and_evaluate(config, tmp_path)
    assert [program._cache_size() for program in programs] == [1, 1]


@pytest.mark.parametrize(("seconds_per_step", "longest"), [(1.0, 5), (4.0, 1), (20.0, 1), (0.1, 50)])
def test_a_dispatch_lasts_no_longer_than_one_is_willing_to_wait(monkeypatch, seconds_per_step, longest):
    now, dispatched = [0.0], []

    class Clock:
        @staticmethod
        def perf_counter():
            return now[0]

    advance = dispatch.Dispatcher(lambda state, data: (state + 1, jnp.int32(0)), chunked=True)
    program = advance.compiled_for(jnp.int32(0), jnp.int32(0))

    def timed(state, sums, data, num_steps):
        dispatched.append(int(num_steps))
        now[0] += seconds_per_step * num_steps
        return program(state, sums, data, num_steps)

    monkeypatch.setattr(advance, "compiled_for", lambda *_: timed)
    monkeypatch.setattr(dispatch, "time", Clock)
    state, _, _ = advance(jnp.int32(0), jnp.int32(0), None, 0, 120)
    assert state == sum(dispatched) == 120
    assert dispatched[0] == 1  # how long it takes is not known before
    assert max(dispatched) == longest


def test_the_largest_number_of_steps_is_respected(experiment, monkeypatch):
    lengths = []
    advance = create_dispatcher(experiment, max_steps=3)
    program = advance.compiled_for(experiment.state, experiment.sums)
    monkeypatch.setattr(
        advance, "compiled_for", lambda *_: lambda *args: lengths.append(int(args[-1])) or program(*args)
    )
    advance(copy(experiment.state), copy(experiment.sums), experiment.train_data, 0, 9)
    assert max(lengths) == 3


def test_steps_go_in_chunks_but_where_a_cpu_has_to_take_xlas_gradient_of_a_kernel(experiment, tmp_path):
    def suits(experiment, apply_fn):
        state = experiment.state.replace(apply_fn=apply_fn)
        return dispatch.suits_chunks(experiment.train_program, state, experiment.train_data)

    fast_apply = experiment.state.apply_fn
    assert suits(experiment, fast_apply)
    assert suits(experiment, fast_apply.model.apply) == (jax.default_backend() != "cpu")
    mlp = create_experiment(digits_config(), tmp_path)
    assert suits(mlp, mlp.state.apply_fn.model.apply)


def test_a_continued_run_is_dispatched_as_it_was(tmp_path, capsys):
    def stored():
        return run_config.read(tmp_path).chunked

    train.train_and_evaluate(digits_config(steps_per_dispatch=1), tmp_path)
    assert stored() is False
    train.train_and_evaluate(digits_config(duration="40 steps"), tmp_path)  # by the rule it would be chunks
    assert stored() is False
    with pytest.raises(UserError, match="chunked: False before, True now"):
        train.train_and_evaluate(digits_config(duration="40 steps", steps_per_dispatch=7), tmp_path)


@pytest.mark.parametrize(("every", "conditional"), [(1, False), (4, True)])
def test_only_an_average_that_often_rests_sits_under_a_conditional(experiment, every, conditional):
    state = experiment.state.with_averages((Average("a", "ema", (("decay", 0.9),), every=every),))
    primitives = {eqn.primitive.name for eqn in jax.make_jaxpr(lambda s: s.apply_ema())(state).eqns}
    assert ("cond" in primitives) == conditional


@pytest.mark.parametrize("chunked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_average_costs_one_float32_copy_of_the_parameters_and_no_temporary_memory(tmp_path, chunked):
    experiment = create_experiment(digits_config(model__hidden_sizes=(256, 256)), tmp_path)
    every_step = Average("a", "ema", (("decay", 0.9),))
    averages = (every_step, dataclasses.replace(every_step, name="b", every=4))

    def memory(averages):
        args = experiment.state.with_averages(averages), experiment.sums
        program = create_dispatcher(experiment, chunked).compiled_for(*args)
        return program.lower(*args, experiment.train_data, np.int32(1)).compile().memory_analysis()

    none, two = memory(()), memory(averages)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(experiment.state.params))
    for name in ("argument_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes"):
        # Each leaf may be padded to 64 bytes, and each average has a count.
        assert 0 <= getattr(two, name) - getattr(none, name) - 2 * size < 2 * 7 * 64, name
    assert two.temp_size_in_bytes - none.temp_size_in_bytes < 0.01 * size  # a few scalars
