"""A run of seconds, for the quick part of the faults: few images, of which few are generated."""

from resnet_cifar.config import Config
from resnet_cifar.data import synthetic

synthetic.SIZES.update(train=200, test=100)


def get_config() -> Config:
    return Config(
        depth=8,
        width=4,
        dataset="synthetic",
        train_split="train[:160]",
        validation_split="train[160:200]",
        batch_size=20,
        num_epochs=6,
        learning_rate=0.2,
        warmup_epochs=1,
        decay_epochs=(3, 4),
        checkpoint_every_epochs=1,
    )
