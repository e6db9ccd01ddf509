"""The recipes: named sets of hyperparameters."""

from typing import Any

from resnet_cifar.config import Config, unknown
from resnet_cifar.errors import UserError

# After chenyaofo/pytorch-cifar-models, whose logs end at 92.56, 93.41, 93.85 and 94.21 % for
# ResNet20 to 56 (CIFAR-10, shortcut B). Nesterov, weight decay, cosine and 200 epochs are
# theirs. The learning rate is 0.1 per 128 images (theirs is per 256). The warm-up helps
# ResNet110.
STRONG: dict[str, Any] = dict(
    bn_scale_init="ones",
    batch_size=256,
    learning_rate=0.2,
    decay="cosine",
    decay_epochs=(),
    num_epochs=200,
    nesterov=True,
    weight_decay=5e-4,
)
RECIPES: dict[str, dict[str, Any]] = {
    "card": {},
    # He et al. 2015, section 4.2: 45k/5k split, 64,000 steps of 128 images, decays at steps 32,000
    # and 48,000. An epoch is 351 steps, and 182.336 * 351 = 63,999.9.
    "paper": dict(
        bn_scale_init="ones",
        train_split="train[:45000]",
        validation_split="train[45000:]",
        batch_size=128,
        learning_rate=0.1,
        warmup_epochs=0,
        num_epochs=182.336,
        decay_epochs=(91.168, 136.752),
    ),
    "strong": STRONG,
    # For the highest accuracy; not measured yet. `strong`, half as long again, with mixup as in
    # GluonCV: Beta(1, 1), and off in the last 20 epochs, whose first adds 0.3 to 1.0 points in its
    # logs (ResNet20, 56 and 110). The average is over some 1,000 steps, five epochs.
    "best": STRONG | dict(num_epochs=300, mixup=1.0, mixup_off_epochs=20, ema_decay=0.999),
    # Aims at the card's 93.1 % in a quarter of its epochs, by linear decay to zero. ResNet56 has
    # reached 92.59 (results/fast.json).
    "fast": dict(
        bn_scale_init="ones",
        batch_size=512,
        learning_rate=0.8,
        decay="linear",
        decay_epochs=(),
        num_epochs=40,
        nesterov=True,
        weight_decay=5e-4,
    ),
}

# Per-depth overrides.
DEPTH_OVERRIDES: dict[tuple[str, int], dict[str, Any]] = {
    # He et al. 2015: 400 steps at a tenth of the learning rate first. 1.14 * 351 = 400.1.
    ("paper", 110): dict(warmup="constant", warmup_epochs=1.14),
}


def make_config(recipe: str, **fields: Any) -> Config:
    """Return the config of a recipe, with some fields overridden; UserError if it is unknown.

    Example:
      >>> make_config("paper", depth=20).batch_size
      128
    """
    if recipe not in RECIPES:
        raise UserError(unknown(f"recipe={recipe!r}", recipe, RECIPES))
    depth = fields.get("depth", Config.depth)
    return Config(**{**RECIPES[recipe], **DEPTH_OVERRIDES.get((recipe, depth), {}), **fields})
