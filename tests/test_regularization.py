"""Label smoothing, mixup, cutout, label noise and subsets against their formulas."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import StopAfter, assert_same, normal

from resnet_cifar.data import Images
from resnet_cifar.optim import make_optimizer
from resnet_cifar.plan import make_plan, training_images
from resnet_cifar.programs import Programs
from resnet_cifar.regularization import (
    Regularization,
    add_label_noise,
    choose_subset,
    cutout,
    mixup,
    smoothed_cross_entropy,
)
from resnet_cifar.state import TrainState, array_fields
from resnet_cifar.steps import train_step
from resnet_cifar.stop import Stopped
from resnet_cifar.train import train_and_evaluate
from resnet_cifar.trainer import Trainer

KEYS = [jax.random.key(seed) for seed in range(20)]


def test_smoothing_is_the_cross_entropy_to_smoothed_labels():
    logits = jax.random.normal(jax.random.key(0), (5, 7))
    labels = jnp.array([0, 6, 3, 3, 1])
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 7), 0.1)
    expected = optax.softmax_cross_entropy(logits, targets)
    np.testing.assert_allclose(
        smoothed_cross_entropy(logits, labels, smoothing=0.1), expected, rtol=1e-6
    )


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_cutout_is_a_square_that_the_border_may_cut(size):
    images = jnp.ones((50, 8, 8, 3))
    holes = np.asarray(cutout(jax.random.key(1), images, size=size)) == 0
    assert (holes.all(axis=3) == holes.any(axis=3)).all()
    rows, columns = holes.any(axis=(2, 3)), holes.any(axis=(1, 3))
    assert (holes.any(axis=3) == rows[:, :, None] & columns[:, None]).all()
    for sides in (rows.sum(axis=1), columns.sum(axis=1)):
        assert sides.max() == size and sides.min() >= -(-size // 2)
    assert len({image.tobytes() for image in holes}) > 10  # Each image has a place of its own.


def batch(n=6):
    return {"image": normal(5, n, 4, 4, 3), "label": jnp.asarray(np.arange(n, dtype=np.int32))}


def test_mixup_mixes_images_and_labels_alike():
    images, mix = np.asarray(batch()["image"]), jax.jit(partial(mixup, alpha=0.5))
    for key in KEYS[:3]:
        mixed = jax.device_get(mix(key, batch()))
        share, other = mixed["share"], mixed["other_label"]
        expected = share * images + (1 - share) * images[other]
        np.testing.assert_allclose(mixed["image"], expected, rtol=1e-5)
        assert sorted(other.tolist()) == [*range(6)]


def test_shares_of_mixup_follow_the_beta_distribution():
    keys = jax.random.split(jax.random.key(0), 4000)
    shares = jax.jit(jax.vmap(lambda key: mixup(key, batch(), alpha=0.4)["share"]))(keys)
    np.testing.assert_allclose(shares.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * 0.4 + 1)), rtol=0.05)


def test_mixup_ends_before_the_last_epochs():
    regularize = jax.jit(Regularization(mixup=0.4, mixup_steps=10).__call__)
    shares = [regularize(KEYS[0], batch(), jnp.int32(step))["share"] for step in (9, 10)]
    assert shares[0] < 1 and shares[1] == 1


def linear(variables, images, **_):
    logits = images.reshape(len(images), -1) @ variables["params"]
    return logits, {}


def test_a_mixed_batch_has_the_loss_of_its_mixed_labels():
    mixed = jax.jit(partial(mixup, alpha=0.5))(KEYS[0], batch())
    params = normal(1, 48, 6)

    def expected_loss(params):
        logits = linear({"params": params}, mixed["image"])[0]
        one_hot = [jax.nn.one_hot(mixed[name], 6) for name in ("label", "other_label")]
        targets = mixed["share"] * one_hot[0] + (1 - mixed["share"]) * one_hot[1]
        return optax.softmax_cross_entropy(logits, targets).mean()

    state = linear_state(params)
    state, metrics = train_step(state, mixed)
    loss, gradient = jax.jit(jax.value_and_grad(expected_loss))(params)
    np.testing.assert_allclose(metrics["loss_sum"], 6 * float(loss), rtol=1e-5)
    expected = np.asarray(params) - 0.1 * np.asarray(gradient)
    np.testing.assert_allclose(state.params, expected, rtol=1e-4, atol=1e-6)


def linear_state(params):
    tx = optax.sgd(0.1)
    return TrainState(
        step=jnp.int32(0),
        params=params.copy(),
        batch_stats={},
        opt_state=tx.init(params),
        apply_fn=linear,
        tx=tx,
        loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    )


def test_a_subset_is_a_function_of_the_seed():
    chosen = choose_subset(3, 1000, 0.25)
    assert len(set(chosen.tolist())) == 250 and (np.diff(chosen) > 0).all()
    assert (chosen == choose_subset(3, 1000, 0.25)).all()
    assert len(np.intersect1d(chosen, choose_subset(4, 1000, 0.25))) < 100
    assert (np.isin(choose_subset(3, 1000, 0.1), chosen)).all()  # Smaller ones are nested.


def test_label_noise_changes_exactly_its_share_to_other_classes():
    labels = np.arange(1000, dtype=np.int32) % 10
    noisy = add_label_noise(0, labels, 0.2, 10)
    assert (noisy != labels).sum() == 200 and noisy.dtype == labels.dtype
    assert set(((noisy - labels) % 10)[noisy != labels].tolist()) == {*range(1, 10)}
    assert (noisy == add_label_noise(0, labels, 0.2, 10)).all()
    assert (noisy != add_label_noise(1, labels, 0.2, 10)).any()


def test_a_part_of_the_train_split_is_trained_on(tiny):
    config = dataclasses.replace(tiny, train_fraction=0.5, label_noise=0.1)
    assert make_plan(config).steps_per_epoch == 2  # 65 of 130 images.
    split = Images(np.zeros((130, 32, 32, 3), np.uint8), np.zeros(130, np.int32))
    images = training_images(config, split)
    assert len(images.images) == 65 and (np.asarray(images.labels) > 0).sum() == round(6.5)


@pytest.mark.slow
def test_the_evaluated_loss_stays_plain(tiny):
    smoothed = dataclasses.replace(tiny, label_smoothing=0.5, num_epochs=1, decay_epochs=())
    smoothed = dataclasses.replace(smoothed, width=4, warmup_epochs=0.5, learning_rate=1e-30)
    plain = dataclasses.replace(smoothed, label_smoothing=0.0)
    losses = {}
    for name, config in {"smoothed": smoothed, "plain": plain}.items():
        trainer = Trainer(config)
        state = trainer.programs.devices.replicate(trainer.init_state())
        rows = trainer.eval_batches("test")[0]
        (done,) = trainer.evaluate(state, 0, "test", rows) or trainer.drain()
        _, finished = trainer.train(state, 0, trainer.epoch_batches(0)[0])
        losses[name] = [d.metrics["loss_sum"] for d in (done, *finished)]
    np.testing.assert_array_equal(losses["smoothed"][0], losses["plain"][0])
    assert (losses["smoothed"][1] != losses["plain"][1]).all()


@pytest.mark.slow
def test_a_regularized_run_resumes_bit_for_bit(tiny, tmp_path):
    config = dataclasses.replace(
        tiny,
        width=4,
        num_epochs=3,
        decay_epochs=(2,),
        label_smoothing=0.1,
        mixup=0.4,
        mixup_off_epochs=1,
        cutout=8,
        label_noise=0.1,
        train_fraction=0.8,
        optimizer="muon",
        learning_rate=0.01,
        decay_mask=True,
    )
    programs = Programs(config)
    state = train_and_evaluate(config, tmp_path / "whole", programs=programs)
    with pytest.raises(Stopped):
        train_and_evaluate(config, tmp_path / "cut", stop=StopAfter(7), programs=programs)
    again = train_and_evaluate(config, tmp_path / "cut", programs=programs)
    assert_same(array_fields(again), array_fields(state))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_of_the_others_is_decoupled(name):
    params = {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}
    grads = jax.tree.map(jnp.ones_like, params)
    steps = []
    for decay in (0.0, 0.5):
        optimizer = make_optimizer(0.1, optimizer=name, weight_decay=decay, decay_mask=True)
        steps.append(optimizer.update(grads, optimizer.init(params), params)[0])
    np.testing.assert_allclose(steps[0]["kernel"] - steps[1]["kernel"], 0.05, rtol=1e-4)
    np.testing.assert_array_equal(steps[0]["bias"], steps[1]["bias"])


def test_masked_decay_leaves_vectors_alone():
    params = {"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(1.0, momentum=0.0, weight_decay=0.5, decay_mask=True)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5)
    np.testing.assert_array_equal(updates["scale"], 0)


def test_muon_moves_kernels_by_an_orthogonal_matrix():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    optimizer = make_optimizer(1.0, optimizer="muon", weight_decay=0.0)
    params = {"kernel": jnp.zeros_like(kernel)}
    updates, _ = optimizer.update({"kernel": kernel}, optimizer.init(params), params)
    singular = np.linalg.svd(np.reshape(updates["kernel"], (36, 8)), compute_uv=False)
    # Five Newton-Schulz steps bring singular values to about 1, and the scale is 0.2 * sqrt(36).
    assert (singular > 0.6 * 1.2).all() and (singular < 1.3 * 1.2).all()


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="use sgd, adamw or muon"):
        make_optimizer(0.1, optimizer="sdg")
