"""The weights in weights/: their page follows the files, and they score as it says."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar import load
from resnet_cifar.data import cifar, load_images
from resnet_cifar.report.runs import read_runs

ROOT = Path(__file__).parents[1]
DEPTHS = (20, 32, 44, 56)
NEAR_TIES = {44: 1}  # Images that another CPU may decide otherwise, of those that are right.


def rows():
    """Return the counts in float32 and bfloat16, and the rest, of each row of the page."""
    row = r"\| `resnet(\d+)-cifar10\.safetensors` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| `(\w+)` \|"
    found = re.findall(row, (ROOT / "weights" / "README.md").read_text())
    counts = {int(d): [int(n.replace(",", "")) for n in own] for d, *own, _ in found}
    return counts, {int(row[0]): row[-1] for row in found}


def test_the_page_has_the_digest_of_every_file():
    _, digests = rows()
    files = sorted((ROOT / "weights").glob("*.safetensors"))
    assert [f"resnet{depth}-cifar10" for depth in digests] == [file.stem for file in files]
    assert [*digests.values()] == [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


def test_the_counts_are_those_of_the_results_and_near_each_other():
    """Rounding changes at most ten of 10,000 predictions in one direction."""
    runs = {run["depth"]: run for run in read_runs(ROOT / "results" / "card.json")[::-1]}
    scores = json.loads((ROOT / "results" / "evaluation_weights.json").read_text())["results"]
    evaluated = {row["name"]: row["correct"] for row in scores}
    for depth, (trained, correct, half) in rows()[0].items():
        assert runs[depth]["seed"] == 0 and trained == round(1e4 * runs[depth]["test_accuracy"])
        assert correct == evaluated[f"resnet{depth}-cifar10"]
        assert abs(correct - trained) <= 10 and abs(half - trained) <= 10


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("depth", DEPTHS)
def test_weights_score_as_the_page_says(depth):
    correct = rows()[0][depth][1]
    assert abs(count_correct(load(f"resnet{depth}-cifar10")) - correct) <= NEAR_TIES.get(depth, 0)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("depth", DEPTHS)
def test_bfloat16_scores_as_the_page_says(depth):
    """Up to some near ties: a step of bfloat16 is coarser than they are."""
    network = load(f"resnet{depth}-cifar10")
    half = dataclasses.replace(network, model=network.model.clone(dtype=jnp.bfloat16))
    assert abs(count_correct(half) - rows()[0][depth][2]) <= 5


def count_correct(network):
    if not cifar.prepared_folder("cifar10", None):
        pytest.skip(f"cifar10 is not prepared in {cifar.resolve(None)}")
    images, labels = load_images("cifar10", "test")
    return int((network.logits(np.asarray(images)).argmax(axis=1) == labels).sum())
