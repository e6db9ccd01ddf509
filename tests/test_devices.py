"""Placement, and what depends on the kind of hardware."""

import jax
import numpy as np
import pytest

from resnet_cifar import devices, native
from resnet_cifar.devices import Devices, require
from resnet_cifar.errors import UserError


def test_batches_are_split_and_everything_else_replicated():
    four = Devices()
    assert four.count == 4 and four.one_at_a_time
    rows = four.split_batch(np.zeros((3, 8), np.int32))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(3, 2)}
    copies = four.replicate(np.zeros(5)).addressable_shards
    assert [copy.data.shape for copy in copies] == [(5,)] * 4


def test_a_batch_that_does_not_divide_names_the_nearest():
    assert not Devices().batch_problem(32)
    assert "use 28 or 32, or fewer devices" in Devices().batch_problem(30)
    assert "use 4, or fewer devices" in Devices().batch_problem(3)


def test_num_devices_takes_the_first():
    assert devices.choose_devices(0) == jax.devices()
    assert devices.choose_devices(3) == jax.devices()[:3]
    assert devices.device_name(3).startswith("3 x ")
    with pytest.raises(UserError, match=r"num_devices=5 can't be had: JAX sees 4, so use 1 to 4"):
        devices.choose_devices(5)


def test_one_cpu_device_keeps_its_queue_and_steps_singly():
    one = Devices(jax.devices()[:1])
    assert not one.one_at_a_time and one.steps_per_dispatch(48) == 1


def test_a_dtype_that_is_named_is_taken():
    assert Devices().dtype("bfloat16") == "bfloat16" and Devices().dtype("float32") == "float32"


def test_auto_is_float32_on_a_cpu():
    """With native kernels, too: they multiply no bfloat16."""
    assert Devices().dtype("auto") == "float32"


def test_whose_kernels_run():
    assert devices.kernels(16) == native.load()
    assert str(devices.kernels(4)) == "XLA's kernels (width=4 is no multiple of 16)"


def test_a_missing_device_is_a_sentence():
    require("")
    require("cpu")
    with pytest.raises(UserError, match="--require=gpu, but the run would use the cpu"):
        require("gpu")


def test_a_platform_that_cannot_start_is_a_sentence(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': no driver\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match=r"JAX can't start cpu \(Unable to .* no driver\): check"):
        devices.all_devices()


def test_a_cpu_beside_a_cuda_plugin_is_noticed(monkeypatch):
    assert devices.unused_gpu() == ""  # JAX was told to use the CPU.
    monkeypatch.setattr(devices, "told_to_use", lambda: "")
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)
    assert "found no GPU: check nvidia-smi" in devices.unused_gpu()
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert devices.unused_gpu() == ""
