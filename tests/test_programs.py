"""The network, optimizer and schedule are those of the config, and seeds share their programs."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from resnet_cifar.devices import Devices
from resnet_cifar.errors import UserError
from resnet_cifar.plan import blank_splits
from resnet_cifar.programs import Programs, random_key, voting
from resnet_cifar.trainer import Trainer


def test_the_network_is_built_from_the_config(tiny):
    scales, kernels = {}, {}
    for name, fields in {
        "uniform": {},
        "ones": {"bn_scale_init": "ones"},
        "seed": {"seed": 1},
    }.items():
        params = Trainer(dataclasses.replace(tiny, **fields), load=blank_splits).init_state().params
        scales[name] = params["stem_bn"]["scale"]
        kernels[name] = params["stem_conv"]["kernel"]
    assert (scales["ones"] == 1).all() and (scales["uniform"] < 1).all()
    assert (kernels["seed"] != kernels["uniform"]).all()


def test_remat_is_the_network_s_and_programs_with_it_are_not_shared(tiny):
    programs = Programs(dataclasses.replace(tiny, remat=True))
    assert programs.model.remat
    assert programs.misfits(tiny) == ["remat"]


def test_the_optimizer_is_built_from_the_config(tiny):
    config = dataclasses.replace(tiny, momentum=0.5, weight_decay=0.01)
    state = Programs(config).init_state(random_key(0), config)
    params, opt_state = state.params, state.opt_state
    grads = jax.tree.map(np.ones_like, params)
    value, buffer = np.float64(params["head"]["kernel"][0, 0]), 0.0
    for rate in (0.0, 0.025, 0.05):  # Four steps of warm-up to 0.1.
        updates, opt_state = state.tx.update(grads, opt_state, params)
        params = jax.tree.map(np.add, params, updates)
        buffer = 0.5 * buffer + 1 + 0.01 * value
        value -= rate * buffer
    np.testing.assert_allclose(params["head"]["kernel"][0, 0], value, rtol=1e-5)


def test_runs_may_share_programs_if_their_configs_differ_in_values(tiny):
    programs = Programs(tiny)
    assert programs.misfits(dataclasses.replace(tiny, momentum=0.1)) == ["momentum"]
    other = dataclasses.replace(tiny, seed=5, learning_rate=2, weight_decay=0.1, init_from="run")
    assert not programs.misfits(other)


def test_learning_rates_are_those_of_the_schedule(tiny):
    rates = Programs(tiny).learning_rates(0.1, range(16))
    expected = [0, 0.025, 0.05, 0.075] + [0.1] * 4 + [0.01] * 4 + [0.001] * 4
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_batch_that_devices_cannot_share_is_refused(tiny):
    with pytest.raises(UserError, match=r"must be a multiple of the 4 devices: use 28 or 32"):
        Programs(dataclasses.replace(tiny, batch_size=30))
    Programs(dataclasses.replace(tiny, batch_size=30, num_devices=2))


def test_without_jit_there_is_a_sentence(tiny):
    with jax.disable_jit(), pytest.raises(UserError, match="JAX_DISABLE_JIT is set"):
        Programs(tiny)


def test_keys_do_not_depend_on_the_default_generator():
    with jax.default_prng_impl("rbg"):
        assert jax.random.key_impl(random_key(0)) == "threefry2x32"


def test_a_vote_costs_one_all_reduce_of_four_bytes():
    devices = Devices()
    votes = jax.device_put(np.array([0, 15, 0, 2], np.int32), devices.by_device)
    program = jax.jit(voting(lambda x: x + 1), out_shardings=devices.replicated)
    compiled = program.lower(np.float32(1), votes).compile()
    assert [int(value) for value in compiled(np.float32(1), votes)] == [2, 15]
    reduced = re.findall(r"= (\S+?)(?:{.*})? all-reduce\(", compiled.as_text() or "")
    assert reduced == ["s32[]"]
    assert "all-gather" not in (compiled.as_text() or "")
