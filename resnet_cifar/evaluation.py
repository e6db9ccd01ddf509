"""What the outputs of a classifier say: accuracy, calibration, confusion, tests between networks.

Outputs are log-probabilities, float64 [n, classes]; labels are integers [n].
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks".


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Images by confidence, the largest probability, in bins of equal width.

    Bin m of M holds confidences in ((m - 1) / M, m / M]. Means of an empty bin are nan.
    """

    count: np.ndarray  # int [bins]
    confidence: np.ndarray  # Mean confidence, float [bins].
    accuracy: np.ndarray  # float [bins]

    @property
    def error(self) -> float:
        """The expected calibration error: `sum(count / n * |accuracy - confidence|)`."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(gaps @ self.count / self.count.sum())


class McNemar(NamedTuple):
    """McNemar's exact test of the hypothesis that two networks err equally often."""

    only_first: int  # Images that only the first network gets right.
    only_second: int
    p: float  # Two-sided; 1 if the two are right on the same images.


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well some outputs fit their labels."""

    right: np.ndarray  # bool [n]: is the label the likeliest class?
    correct_top5: int
    nll: float  # Mean negative log-likelihood, in nats.
    reliability: Reliability
    confusion: np.ndarray  # int [classes, classes]: rows are labels, columns predictions.

    @property
    def n(self) -> int:
        return len(self.right)

    @property
    def correct(self) -> int:
        return int(self.right.sum())

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def top5_accuracy(self) -> float:
        return self.correct_top5 / self.n

    @property
    def class_accuracy(self) -> np.ndarray:
        """Accuracy by class, float [classes]; nan for a class without images."""
        counts = self.confusion.sum(1)
        return np.where(counts, self.confusion.diagonal() / np.maximum(counts, 1), np.nan)


def score(outputs: np.ndarray, labels: np.ndarray) -> Scores:
    """Return all scores of some outputs."""
    return Scores(
        right=outputs.argmax(1) == labels,
        correct_top5=int(top_k_hits(outputs, labels, 5).sum()),
        nll=float(-outputs[np.arange(len(labels)), labels].mean()),
        reliability=reliability(outputs, labels),
        confusion=confusion_matrix(labels, outputs.argmax(1), outputs.shape[1]),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities in float64.

    Example:
      >>> np.exp(log_softmax(np.log([[1.0, 3.0]]))).round(6).tolist()
      [[0.25, 0.75]]
    """
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def mean_of_probabilities(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the outputs of an ensemble: the mean of the probabilities, as log-probabilities.

    Example:
      >>> members = [np.log([[0.5, 0.5]]), np.log([[0.1, 0.9]])]
      >>> np.exp(mean_of_probabilities(members)).round(6).tolist()
      [[0.3, 0.7]]
    """
    return np.logaddexp.reduce(outputs, axis=0) - np.log(len(outputs))


def top_k_hits(outputs: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return bool [n]: is the label among the k likeliest? Of equals, the first class wins."""
    ranked = np.argsort(-outputs, axis=1, kind="stable")[:, :k]
    return (ranked == labels[:, None]).any(1)


def reliability(outputs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    confidence, right = np.exp(outputs.max(1)), outputs.argmax(1) == labels
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    index = np.searchsorted(inner, confidence, side="left")  # An edge belongs to the bin below it.
    count = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights, bins) for weights in (confidence, right)]
    means = [np.where(count, total / np.maximum(count, 1), np.nan) for total in sums]
    return Reliability(count, *means)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int [classes, classes]: images by label (row) and prediction (column)."""
    flat = np.bincount(labels.astype(np.int64) * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def most_confused(confusion: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Return (label, prediction, images) of the most frequent mistakes, the first first."""
    mistakes = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, confusion.shape), strict=True)
    return [(int(i), int(j), int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def confident_mistakes(outputs: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of the wrong predictions with the largest probabilities."""
    wrong = np.flatnonzero(outputs.argmax(1) != labels)
    return wrong[np.argsort(-outputs.max(1)[wrong], kind="stable")[:most]]


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Compare two networks on the same images.

    Where exactly one of them is right, either is equally likely to be under the hypothesis that
    they err equally often: `p` is that of a two-sided binomial test.

    Args:
      first: bool [n], where the first network is right.
      second: bool [n], where the second is.

    Example:
      >>> mcnemar(np.array([True] * 3), np.array([False] * 3))
      McNemar(only_first=3, only_second=0, p=0.25)
    """
    from scipy.stats import binomtest  # Slow to import.

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    p = float(binomtest(only_first, n).pvalue) if n else 1.0
    return McNemar(only_first, only_second, p)


def percent(probability: float) -> str:
    """Return a probability below 1, which rounding must not turn into certainty."""
    return f"{probability:.2%}" if probability < 0.99995 else "> 99.99%"
