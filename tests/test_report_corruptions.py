"""Tables of corruptions and their means."""

import numpy as np
import pytest

from resnet_cifar.evaluation import log_softmax, score
from resnet_cifar.report.corruptions import (
    BENCHMARK,
    SEVERITIES,
    corruption_json,
    corruption_lines,
    in_order,
)


def scores(correct, n=10):
    predicted = (np.arange(n) >= correct).astype(int)
    return score(log_softmax(np.eye(2)[predicted]), np.zeros(n, int))


def row(first):
    """Return scores of five severities: one image fewer right in each."""
    return [scores(first - i) for i in range(SEVERITIES)]


def test_rows_are_corruptions_and_columns_severities():
    lines = corruption_lines({"net": {"fog": row(10), "frost": row(8)}})
    cells = [line.split() for line in lines]
    assert cells[0][0] == "net" and cells[0][-1] == "mean"
    assert cells[1] == ["fog", "100.00%", "90.00%", "80.00%", "70.00%", "60.00%", "80.00%"]
    assert lines[3].startswith("mean of 2") and cells[3][-1] == "70.00%"
    assert lines[-1] == "correct: 70 of 100"


def test_extra_corruptions_are_no_part_of_the_benchmarks_mean():
    table = {name: row(10) for name in BENCHMARK} | {"saturate": row(5)}
    (result,) = corruption_json("data", {"net": table})["results"]
    means = {title: mean["accuracy"] for title, mean in result["means"].items()}
    assert means["mean of the benchmark's 15"] == pytest.approx(0.8)
    assert means["mean of 16"] == pytest.approx((15 * 0.8 + 0.3) / 16)


def test_the_benchmark_alone_has_one_mean():
    table = {name: row(10) for name in BENCHMARK}
    (result,) = corruption_json("data", {"net": table})["results"]
    assert list(result["means"]) == ["mean of 15"]


def test_the_json_has_all_scores_of_each_severity():
    content = corruption_json("data", {"net": {"fog": row(9)}})
    (result,) = content["results"]
    assert content["data"] == "data" and result["name"] == "net"
    assert [cell["correct"] for cell in result["corruptions"]["fog"]] == [9, 8, 7, 6, 5]
    assert {"n", "accuracy", "nll", "ece"} <= set(result["corruptions"]["fog"][0])


def test_corruptions_come_in_the_order_of_the_benchmark():
    assert in_order(["spatter", "fog", "saturate", "gaussian_noise"]) == [
        "gaussian_noise", "fog", "saturate", "spatter",
    ]  # fmt: skip
