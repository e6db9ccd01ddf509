"""PyTorch's checkpoints give PyTorch's logits, and a mistake gets a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resnet_cifar import __main__, load, load_images
from resnet_cifar.errors import UserError
from resnet_cifar.import_torch import PREPROCESSING, import_torch, preprocessing_of
from resnet_cifar.torch_file import read_torch

ROOT = Path(__file__).parents[1]
FILES = Path(__file__).parent / "torch_files"  # `make.py` there made them, with PyTorch.
SIX = "0.5,0.4,0.3,0.2,0.3,0.25"
EXAMPLES = {"akamaster": "akamaster.th", "chenyaofo": "chenyaofo.pt", "pytorchcv": "pytorchcv.pth"}


def images():
    return (np.arange(3 * 32 * 32 * 3) * 37 // 5 % 256).astype(np.uint8).reshape(3, 32, 32, 3)


@pytest.mark.parametrize(("layout", "file"), EXAMPLES.items())
def test_logits_are_pytorchs(layout, file):
    found, pretrained = import_torch(FILES / file, preprocessing_of(SIX))
    shortcut = "A" if layout == "akamaster" else "B"
    assert found == layout
    assert (pretrained.model.depth, pretrained.model.width) == (8, 2)
    assert (pretrained.model.num_classes, pretrained.model.shortcut) == (10, shortcut)
    wanted = json.loads((FILES / "logits.json").read_text())[layout]
    np.testing.assert_allclose(pretrained.logits(images()), wanted, rtol=0, atol=1e-4)


def test_from_file_to_weights_in_a_process(tmp_path):
    arguments = [FILES / "akamaster.th", f"--preprocessing={SIX}", "--dataset=synthetic"]
    done = subprocess.run(
        [sys.executable, "-m", "resnet_cifar", "import_torch", *arguments, f"--output={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert "ResNet8, shortcut A, width 2, 10 classes, 1,356 parameters" in done.stdout
    pretrained = load(tmp_path)
    assert pretrained.preprocessing == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    assert pretrained.class_names[0] == "disk in rows" and pretrained.config == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one file, not none"),
        (["a.th", "b.th"], "give one file, not a.th b.th"),
        (["a.th", "--ouptut=x"], "--ouptut is unknown: did you mean --output"),
        (["a.th"], "give --output=FOLDER"),
        (["a.th", "--output=x"], "give --preprocessing, .* imagenet, or six numbers"),
        (["a.th", "--output=x", "--preprocessing=cifra10"], "did you mean cifar10"),
        (["a.th", "--output=x", "--preprocessing=1,1,1,1,1"], "must be six finite numbers"),
        (["a.th", "--output=x", "--preprocessing=1,1,1,1,0,1"], "three positive stds"),
        (["a.th", "--output=x", "--preprocessing=1,1,1,1,nan,1"], "must be six finite numbers"),
        (["a.th", "--output=x", "--preprocessing=cifar10"], "a.th can't .* there is no such file"),
        (
            ["a.th", "--output=x", "--preprocessing=cifar10", "--dataset=mnist"],
            "--dataset='mnist' is unknown",
        ),
        (
            [
                FILES / "akamaster.th",
                "--output=x",
                f"--preprocessing={SIX}",
                "--dataset=synthetic100",
            ],
            "holds a network of 10 classes, but 100 class names were given",
        ),
        (
            [FILES / "akamaster.th", "--output=/dev/null/x", "--preprocessing=imagenet"],
            "/dev/null/x can't be made",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{message}"):
        __main__.main(["resnet_cifar", "import_torch", *map(str, arguments)])


def test_weights_that_are_not_finite_are_refused(tmp_path):
    bias = read_torch(FILES / "akamaster.th")["module.linear.bias"].tobytes()
    data = (FILES / "akamaster.th").read_bytes().replace(bias, b"\xff" * len(bias))
    (tmp_path / "nan.th").write_bytes(data)
    with pytest.raises(UserError, match=r"nan.th can't be imported: .*head/bias is not finite"):
        import_torch(tmp_path / "nan.th", PREPROCESSING["cifar10"])


@pytest.mark.real_data
@pytest.mark.skipif(
    "TORCH_WEIGHTS" not in os.environ,
    reason="TORCH_WEIGHTS=FILE names resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10",
)
def test_published_weights_score_as_published():
    images, labels = load_images("cifar10", "test")
    _, pretrained = import_torch(os.environ["TORCH_WEIGHTS"], PREPROCESSING["imagenet"])
    assert (pretrained.logits(images).argmax(axis=1) == labels).sum() == 9173
