"""Synthetic images: a textured shape on a shaded background, with CIFAR's size and statistics.

The class is a pair of shape and texture. Position, size, colours, texture phase, shading and noise
are random for each image, so neither colour nor any single pixel gives the class away.
"""

import numpy as np

SIZES = {"train": 10_000, "test": 2_000}

# Each is symmetric, as training flips. Coordinates run from -1 to 1 over the shape, y downwards.
SHAPES = {
    "disk": lambda y, x: y**2 + x**2 < 1,
    "square": lambda y, x: np.maximum(abs(y), abs(x)) < 0.9,
    "triangle": lambda y, x: (abs(x) < (y + 1) / 2) & (y < 0.8),
    "plus": lambda y, x: (np.minimum(abs(y), abs(x)) < 0.33) & (np.maximum(abs(y), abs(x)) < 1),
    "ring": lambda y, x: (y**2 + x**2 < 1.1) & (y**2 + x**2 > 0.35),
    "diamond": lambda y, x: abs(y) + abs(x) < 1.2,
    "hourglass": lambda y, x: (abs(x) < abs(y)) & (abs(y) < 0.9),
    "bow tie": lambda y, x: (abs(y) < abs(x)) & (abs(x) < 0.9),
    "saltire": lambda y, x: (abs(abs(y) - abs(x)) < 0.4) & (np.maximum(abs(y), abs(x)) < 1),
    "frame": lambda y, x: (np.maximum(abs(y), abs(x)) < 0.95) & (np.maximum(abs(y), abs(x)) > 0.5),
}
# Where the brighter of two colours goes. Coordinates are in pixels, shifted by the phase.
TEXTURES = {
    "rows": lambda y, x: y % 6 < 3,
    "columns": lambda y, x: x % 6 < 3,
    "checkers": lambda y, x: (y % 6 < 3) ^ (x % 6 < 3),
    "fine rows": lambda y, x: y % 3 < 1.5,
    "fine columns": lambda y, x: x % 3 < 1.5,
    "dots": lambda y, x: (y % 6 < 3) & (x % 6 < 3),
    "mesh": lambda y, x: (y % 6 < 3) | (x % 6 < 3),
    "broad rows": lambda y, x: y % 12 < 6,
    "broad columns": lambda y, x: x % 12 < 6,
    "plain": lambda y, x: np.ones_like(y, bool),
}


def kinds(num_classes: int) -> tuple[list[str], list[str]]:
    """Return the shapes and the textures that make up 10 classes (5 x 2) or 100 (10 x 10)."""
    num_shapes, num_textures = (5, 2) if num_classes == 10 else (10, 10)
    return list(SHAPES)[:num_shapes], list(TEXTURES)[:num_textures]


def class_names(num_classes: int) -> list[str]:
    """Return "disk in rows" and so on, in the order of the labels."""
    shapes, textures = kinds(num_classes)
    return [f"{shape} in {texture}" for shape in shapes for texture in textures]


def make_images(num_classes: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [n, 32, 32, 3], uint8 [n]) with equally many images of each class.

    Nothing but the arguments determines them. `split` is "train" or "test".
    """
    n = SIZES[split]
    rng = np.random.default_rng([seed, num_classes, list(SIZES).index(split)])
    labels = rng.permutation(np.arange(n) % num_classes).astype(np.uint8)
    shapes, textures = kinds(num_classes)
    shape, texture = np.divmod(labels, len(textures))

    def uniform(low, high, *size):
        return rng.uniform(low, high, (*size, n, 1, 1)).astype(np.float32)

    y, x = np.mgrid[:32, :32].astype(np.float32)[:, None] - 31 / 2  # From the centre.
    top, left = uniform(-6, 6, 2)
    radius = uniform(8, 13)
    inside = evaluate_each(
        [SHAPES[name] for name in shapes], shape, (y - top) / radius, (x - left) / radius
    )
    phase_y, phase_x = uniform(0, 12, 2)
    bright = evaluate_each([TEXTURES[name] for name in textures], texture, y + phase_y, x + phase_x)

    # Two colours of the shape and one of the background, each of another brightness.
    levels = rng.permuted(np.tile(np.array([0.22, 0.48, 0.74], np.float32), (n, 1)), axis=1)
    colours = levels[:, :, None] + rng.normal(0, 0.1, (n, 3, 3)).astype(np.float32)
    one, other, back = (colours[:, i, None, None, :] for i in range(3))
    scene = np.where(inside[..., None], np.where(bright[..., None], one, other), back)
    slope_y, slope_x = uniform(-0.012, 0.012, 2)
    scene += (slope_y * y + slope_x * x)[..., None]
    scene += rng.normal(0, 0.08, scene.shape).astype(np.float32)
    return (255 * np.clip(scene, 0, 1)).round().astype(np.uint8), labels


def evaluate_each(functions, index: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Evaluate `functions[index[i]]` for each image i; returns bool [n, 32, 32]."""
    y, x = np.broadcast_arrays(y, x)
    result = np.empty(y.shape, bool)
    for i, function in enumerate(functions):
        result[index == i] = function(y[index == i], x[index == i])
    return result
