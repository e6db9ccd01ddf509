"""Scores as text and as JSON."""

import json

import numpy as np
import pytest

from resnet_cifar.data import Images
from resnet_cifar.evaluation import McNemar, log_softmax, score
from resnet_cifar.report.evaluations import (
    Comparison,
    Evaluation,
    Result,
    evaluation_json,
    evaluation_lines,
)
from resnet_cifar.report.statistics import PairedDifference, Spread


def make_evaluation(classes=3, n=60, comparison=None, mistakes=True):
    """Return an evaluation whose class i is right less often the larger i is."""
    labels = np.arange(n) % classes
    wrong = np.arange(n) // classes < labels * n / classes**2
    predicted = np.where(wrong & mistakes, (labels + 1) % classes, labels)
    outputs = log_softmax(5 * np.eye(classes)[predicted])
    names = tuple(f"class{i}" for i in range(classes))
    results = [Result("net", flip, outputs, score(outputs, labels)) for flip in (False, True)]
    images = Images(np.zeros((n, 32, 32, 3), np.uint8), labels)
    return Evaluation("some data", images, names, results, comparison)


def test_the_text_has_exact_counts():
    evaluation = make_evaluation()
    text = "\n".join(evaluation_lines(evaluation))
    assert text.startswith("some data, 60 images\n")
    assert "net                  39 of 60  65.00%  100.00%" in text
    assert "net, flips averaged  39 of 60" in text
    assert "class1  13 of 20   65.00%" in text
    assert "class2 taken for class0" in text and "class0 taken for" not in text


def test_of_many_classes_the_worst_are_shown():
    lines = evaluation_lines(make_evaluation(classes=30, n=900))
    at = next(i for i, line in enumerate(lines) if line.startswith("worst 10 of 30 classes"))
    shown = [line.split()[0] for line in lines[at + 1 : at + 11]]
    assert set(shown) == {f"class{i}" for i in range(20, 30)} and lines[at + 11] == ""


def test_the_text_compares_networks():
    comparison = Comparison(
        Spread(0.9173, 0.0021, 3),
        [("a", "b", McNemar(30, 12, 0.0079)), ("a", "c", McNemar(4000, 0, 0.0))],
        [("ResNet20", "ResNet56", PairedDifference(0.0123, 0.004, 3, 0.002))],
    )
    text = "\n".join(evaluation_lines(make_evaluation(comparison=comparison)))
    assert "top-1 of 3 networks: 91.73 ± 0.21 %" in text
    assert "a alone is right on 30 images, b alone on 12: p = 0.0079 (McNemar" in text
    assert "c alone on 0: p < 1e-9 (McNemar" in text
    assert "ResNet56 minus ResNet20: +1.23 ± 0.40 points (95 % interval over 3 seeds" in text


def test_the_json_has_every_score_and_no_nan():
    def refuse(constant):
        raise AssertionError(constant)

    evaluation = make_evaluation()
    content = json.loads(json.dumps(evaluation_json(evaluation)), parse_constant=refuse)
    plain, flipped = content["results"]
    assert (plain["flip"], flipped["flip"]) == (False, True)
    scores = evaluation.main.scores
    assert (plain["correct"], plain["n"]) == (39, 60) and plain["accuracy"] == scores.accuracy
    assert plain["class_accuracy"]["class1"] == pytest.approx(0.65)
    assert plain["confusion"] == scores.confusion.tolist()
    assert sum(plain["reliability"]["count"]) == 60
    assert plain["reliability"]["accuracy"][0] is None  # An empty bin.
    assert "mcnemar" not in content


def test_the_json_compares_networks():
    test = McNemar(30, 12, 0.0079)
    comparison = Comparison(Spread(0.9, 0.1, 2), [("a", "b", test)], [])
    content = evaluation_json(make_evaluation(comparison=comparison))
    assert content["accuracy"] == {"mean": 0.9, "deviation": 0.1, "n": 2}
    assert content["mcnemar"] == [{"first": "a", "second": "b", **test._asdict()}]
