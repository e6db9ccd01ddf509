"""A run of seconds, so that a fault costs little more than the start of a process."""

from resnet_cifar.config import Config
from resnet_cifar.data import synthetic


def get_config() -> Config:
    synthetic.SIZES.update(train=200, test=100)
    return Config(
        depth=8,
        width=4,
        dataset="synthetic",
        train_split="train[:160]",
        validation_split="train[160:200]",
        batch_size=20,
        num_epochs=12,
        learning_rate=0.2,
        warmup_epochs=1,
        decay_epochs=(6, 8),
        checkpoint_every_epochs=1,
    )
