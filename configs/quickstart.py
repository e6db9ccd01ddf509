"""ResNet8 on synthetic images: no download, some minutes on two cores, 99 % test accuracy.

python main.py --config=configs/quickstart.py
"""

from resnet_cifar.config import Config


def get_config() -> Config:
    return Config(
        depth=8,
        dataset="synthetic",
        train_split="train[:6000]",
        batch_size=100,
        num_epochs=6,
        learning_rate=0.2,
        warmup_epochs=1,
        decay_epochs=(4, 5),
        checkpoint_every_epochs=1,
    )
