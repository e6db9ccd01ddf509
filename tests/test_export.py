"""What is exported is the network: in every format, after reading it again."""

import dataclasses
import json
import os
import subprocess
import sys

import jax.export
import numpy as np
import pytest
from absl import flags
from helpers import assert_same, make_pretrained
from synthetic_runs import make_workdir

from resnet_cifar.errors import UserError
from resnet_cifar.export import FORMATS, define_flags, export, main
from resnet_cifar.import_torch import import_torch
from resnet_cifar.model_card import hub_config, model_card
from resnet_cifar.pretrained import load
from resnet_cifar.stop import Stop
from resnet_cifar.variables import stack_blocks
from resnet_cifar.weights import save_weights

FRUIT = ("fig", "kiwi", "lime")
IMAGES = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def trained():
    return make_pretrained(FRUIT, width=4, config={"dataset": "cifar10", "depth": 8, "seed": 3})


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "fruit.safetensors"
    save_weights(path, trained)
    return path


def test_safetensors_keep_everything(trained, weights, tmp_path):
    assert export(weights, tmp_path / "new" / "folder") == 0
    again = load(tmp_path / "new" / "folder")
    assert_same(again.variables, trained.variables)
    for field in ("model", "preprocessing", "class_names", "config"):
        assert getattr(again, field) == getattr(trained, field)
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert config == hub_config(trained) and config["id2label"]["1"] == "kiwi"


@pytest.mark.parametrize(
    ("shortcut", "layout", "key"),
    [
        ("A", "akamaster", "linear.weight"),
        ("B", "chenyaofo", "layer2.0.downsample.0.weight"),
    ],
)
def test_the_round_trip_through_pytorch_is_exact(tmp_path, shortcut, layout, key):
    trained = make_pretrained(FRUIT, width=4, shortcut=shortcut)
    save_weights(tmp_path / "in.safetensors", trained)
    assert export(tmp_path / "in.safetensors", tmp_path, form="torch") == 0
    found, again = import_torch(tmp_path / "model.pt", trained.preprocessing)
    assert found == layout
    assert_same(again.variables, trained.variables)
    assert key.encode() in (tmp_path / "model.pt").read_bytes()
    assert json.loads((tmp_path / "model.pt.json").read_text())["names"] == layout


def test_pytorch_gets_stacked_blocks_one_by_one(tmp_path):
    plain = make_pretrained(FRUIT, depth=20, width=2)
    stacked = dataclasses.replace(
        plain, model=plain.model.clone(remat=True), variables=stack_blocks(plain.variables)
    )
    form = FORMATS["torch"]
    assert form.make(stacked) == form.make(plain)
    (tmp_path / "model.pt").write_bytes(form.make(stacked)[0])
    again = form.read(tmp_path, stacked).__self__  # Whose method it is.
    assert again.model.remat
    assert_same(again.variables, stacked.variables)


@pytest.mark.slow
def test_a_program_for_any_batch_comes_out_of_the_command(trained, weights, tmp_path):
    command = [sys.executable, "-m", "resnet_cifar", "export", str(weights), "--format=stablehlo"]
    done = subprocess.run(
        [*command, f"--output={tmp_path}"],
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"wrote model.stablehlo, model.stablehlo.json to {tmp_path}" in done.stdout
    assert "the probabilities differ by" in done.stdout
    exported = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    expected = trained.probabilities(IMAGES)
    np.testing.assert_allclose(exported.call(IMAGES), expected, atol=1e-6)
    np.testing.assert_allclose(exported.call(IMAGES[:2]), expected[:2], atol=1e-6)
    facts = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert facts["id2label"]["0"] == "fig" and facts["jax"] == jax.__version__


def test_an_export_that_differs_is_an_error(trained, weights, tmp_path, monkeypatch):
    damaged = FORMATS["safetensors"]._replace(
        read=lambda folder, _: lambda images: load(folder).probabilities(images) + 2e-4
    )
    monkeypatch.setitem(FORMATS, "safetensors", damaged)
    with pytest.raises(UserError, match=r"differs from the network by 0\.0002 .* do not use it"):
        export(weights, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"form": "onnx"},
            "--format=onnx is unknown: the choices are safetensors, torch, stablehlo",
        ),
        (
            {"form": "torch", "push": "me/net"},
            "--push=me/net takes --format=safetensors, not torch",
        ),
        ({"push": "net"}, "'net' is no repository of the hub: give USER/NAME"),
        ({"output": "/dev/null/x"}, "can't be written .*: choose another"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(weights, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        export(weights, **{"output": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_a_file_of_other_content_is_not_overwritten(weights, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UserError, match=r"has another config.json: choose another folder"):
        export(weights, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_the_command_takes_one_path(arguments):
    values = flags.FlagValues()
    define_flags(values)
    values.mark_as_parsed()
    with pytest.raises(UserError, match="give one PATH"):
        main(values, arguments, Stop())


def test_the_card_has_result_and_training_of_the_run(trained, tmp_path):
    make_workdir(tmp_path / "run", "strong", accuracy=0.9173, depth=20, seed=3)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    run = dataclasses.replace(trained, config=config, source=str(tmp_path / "run"))
    card = model_card(run, "hf://me/net")
    assert card.startswith("---\nlibrary_name: resnet_cifar\n")
    assert "datasets: [uoft-cs/cifar10]" in card and "ResNet8 on CIFAR-10" in card
    assert "91.73% of the test images after the last epoch, with seed 3." in card
    assert "| `weight_decay` | 0.0005 |" in card and 'load("hf://me/net")' in card
    unknown = model_card(dataclasses.replace(trained, config={}, source="elsewhere"))
    assert "was not recorded" in unknown and "is not recorded" in unknown


def test_the_card_does_not_name_folders_of_this_machine(trained):
    config = {"dataset": "/home/me/fruit", "init_from": "/home/me/runs/a", "data_dir": "/home/me"}
    card = model_card(dataclasses.replace(trained, config=config))
    assert "# ResNet8 on fruit" in card and "| `init_from` | a |" in card and "/home" not in card
