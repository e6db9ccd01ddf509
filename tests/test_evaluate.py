"""The verb evaluate: scores, comparisons, corruptions, and the command in a process."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import FakeNetwork, images_saying, save_random_weights

from resnet_cifar import __main__
from resnet_cifar.errors import UserError
from resnet_cifar.evaluate import evaluate, evaluate_corruptions
from resnet_cifar.evaluation import mcnemar

ROOT = Path(__file__).parents[1]


def save(path, said, labels, mirrored=None, **arrays):
    np.savez(path, images=images_saying(said, mirrored), labels=np.array(labels), **arrays)
    return str(path)


@pytest.fixture
def four(tmp_path):
    """Return a file of four images, of which a network without shift gets three right."""
    return save(tmp_path / "four.npz", [0, 1, 2, 0], [0, 1, 2, 1])


def test_the_counts_are_exact(four):
    evaluation = evaluate([FakeNetwork()], four)
    scores = evaluation.main.scores
    assert (scores.correct, scores.n, scores.correct_top5) == (3, 4, 4)
    assert scores.reliability.error == pytest.approx(0.8 - 0.75)
    assert scores.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert evaluation.comparison is None


def test_flips_are_scored_apart(tmp_path):
    """Mirrored, the second image speaks for its label, the third against it."""
    data = save(tmp_path / "a.npz", [0, 1, 2], [0, 0, 2], mirrored=[0, 0, 1])
    plain, flipped = evaluate([FakeNetwork()], data, flip=True).results
    alone = evaluate([FakeNetwork()], data).main
    assert not plain.flip and flipped.flip
    np.testing.assert_array_equal(plain.outputs, alone.outputs)
    expected = [[0.8, 0.1, 0.1], [0.45, 0.45, 0.1], [0.1, 0.45, 0.45]]
    np.testing.assert_allclose(np.exp(flipped.outputs), expected, rtol=1e-5)


def test_several_networks_are_compared_and_joined(four):
    networks = [FakeNetwork("a"), FakeNetwork("b", shift=1), FakeNetwork("c", confidence=0.9)]
    evaluation = evaluate(networks, four, flip=True)
    names = [(result.name, result.flip) for result in evaluation.results]
    assert names == [(name, flip) for flip in (False, True) for name in ["a", "b", "c", "ensemble"]]
    assert evaluation.main.name == "ensemble" and not evaluation.main.flip
    members = [np.exp(result.outputs) for result in evaluation.results[:3]]
    np.testing.assert_allclose(np.exp(evaluation.main.outputs), np.mean(members, axis=0))
    accuracies = [0.75, 0.25, 0.75]
    assert evaluation.comparison.accuracy.mean == pytest.approx(np.mean(accuracies))
    assert evaluation.comparison.accuracy.deviation == pytest.approx(np.std(accuracies, ddof=1))
    right = [np.array([1, 1, 1, 0], bool), np.array([0, 0, 0, 1], bool)]
    assert evaluation.comparison.on_images == [
        ("a", "b", mcnemar(*right)),
        ("a", "c", mcnemar(right[0], right[0])),
    ]


def corrupt(folder, n=10):
    """Write two corruptions; n images per severity, of which `severity` are misread in "fog"."""
    labels = np.zeros(5 * n, np.uint8)
    fog = np.concatenate([np.arange(n) < severity for severity in range(1, 6)])
    np.save(folder / "fog.npy", images_saying(fog))
    np.save(folder / "noise.npy", images_saying(labels))
    np.save(folder / "labels.npy", labels)


def test_corruptions_are_scored_by_severity(tmp_path):
    corrupt(tmp_path)
    tables = evaluate_corruptions([FakeNetwork("a")], tmp_path)
    assert list(tables) == ["a"] and list(tables["a"]) == ["fog", "noise"]
    assert [(s.correct, s.n) for s in tables["a"]["fog"]] == [(10 - i, 10) for i in range(1, 6)]
    assert [s.correct for s in tables["a"]["noise"]] == [10] * 5


def test_a_slice_is_one_of_each_severity(tmp_path):
    corrupt(tmp_path)
    tables = evaluate_corruptions([FakeNetwork("a")], tmp_path / "fog.npy", "test[:4]")
    assert [(s.correct, s.n) for s in tables["a"]["fog"]] == [(x, 4) for x in (3, 2, 1, 0, 0)]


def test_corruptions_of_several_networks_have_an_ensemble(tmp_path):
    corrupt(tmp_path)
    networks = [FakeNetwork("a", confidence=0.9), FakeNetwork("b", shift=1)]
    tables = evaluate_corruptions(networks, tmp_path, flip=True)
    labels = ["a", "b", "ensemble"]
    assert list(tables) == [*labels, *(f"{label}, flips averaged" for label in labels)]
    assert tables["ensemble"]["fog"][0].correct == tables["a"]["fog"][0].correct == 9


def test_severities_are_of_one_size(tmp_path):
    np.save(tmp_path / "fog.npy", images_saying([0] * 7))
    np.save(tmp_path / "labels.npy", np.zeros(7, int))
    with pytest.raises(UserError, match=r"fog.npy has 7 images, .* not five equal severities"):
        evaluate_corruptions([FakeNetwork()], tmp_path)


def test_there_are_no_corrupted_train_images(tmp_path):
    corrupt(tmp_path)
    with pytest.raises(UserError, match="--split=train does not fit"):
        evaluate_corruptions([FakeNetwork()], tmp_path, "train")


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([], "give the PATH of a network"),
        ([FakeNetwork("a"), FakeNetwork("a")], "a is given twice"),
        ([FakeNetwork("a"), FakeNetwork("b", ("x", "y"))], "a and b have other classes"),
        ([FakeNetwork("a", confidence=float("nan"))], "a gives outputs that are not finite"),
        (["/nowhere"], "/nowhere does not exist"),
    ],
)
def test_networks_that_can_not_be_scored(networks, message, four):
    with pytest.raises(UserError, match=message):
        evaluate(networks, four)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "error: give the PATH of a network"),
        (["evaluate", "x", "--spilt=train"], "--spilt is unknown: did you mean --split"),
        (["evaluate", "/nowhere"], "error: /nowhere does not exist"),
        (["evaluate", "/nowhere", f"--data={'x' * 300}"], "error: /nowhere does not exist"),
        (["evaluate", "x", "--output=/dev/null/x"], "--output=/dev/null/x can't be written"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message):
        __main__.main(["resnet_cifar", *arguments])


def test_the_command_prints_corruptions_as_json(tmp_path, capsys):
    pretrained = save_random_weights(tmp_path / "model.safetensors", ("ant", "bee", "cat"))
    images = np.random.default_rng(1).integers(0, 256, (300, 32, 32, 3), np.uint8)
    labels = np.arange(300) % 3
    (tmp_path / "C").mkdir()
    np.save(tmp_path / "C" / "fog.npy", images)
    np.save(tmp_path / "C" / "labels.npy", labels)
    arguments = [str(tmp_path / "model.safetensors"), f"--data={tmp_path / 'C'}", "--json"]
    __main__.main(["resnet_cifar", "evaluate", *arguments])
    (result,) = json.loads(capsys.readouterr().out)["results"]
    right = (pretrained.logits(images, batch_size=64).argmax(1) == labels).reshape(5, 60)
    found = [cell["correct"] for cell in result["corruptions"]["fog"]]
    assert found == right.sum(1).tolist()


def test_from_weights_to_scores_in_a_process(tmp_path):
    pretrained = save_random_weights(tmp_path / "model.safetensors", ("ant", "bee", "cat"))
    images = np.random.default_rng(1).integers(0, 256, (60, 32, 32, 3), np.uint8)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    done = subprocess.run(
        [
            sys.executable, "-m", "resnet_cifar", "evaluate", str(tmp_path / "model.safetensors"),
            f"--data={tmp_path / 'a.npz'}", "--flip", f"--output={tmp_path / 'out'}",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    correct = (pretrained.logits(images).argmax(1) == labels).sum()
    assert re.search(rf"model.safetensors +{correct} of 60 ", done.stdout)
    assert re.search(r"model.safetensors, flips averaged +\d+ of 60 ", done.stdout)
    files = "evaluation.json, reliability.png, confusion.png, mistakes.png"
    assert done.stdout.endswith(f"\nwrote {files} to {tmp_path / 'out'}\n")
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["results"][0]["correct"] == correct and content["device"]
    for name in ("reliability", "confusion", "mistakes"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
