"""ResNet14 on CIFAR-10 for 20 epochs, with a validation split: to compare settings on a GPU.

python -m resnet_cifar sweep --config=configs/short.py --config.cutout=0,8 --seeds=0,1,2
python -m resnet_cifar sweep --config=configs/short.py:strong --seeds=0,1,2

The decay epochs of a recipe are scaled to 20 epochs, and its learning rate to a batch of 512. The
warm-up (1 epoch), the end without mixup (2) and `ema_decay` (0.99) are the same for all.
"""

from resnet_cifar.config import Config
from resnet_cifar.recipes import make_config


def get_config(recipe: str = "card") -> Config:
    config = make_config(recipe, depth=14)
    config.learning_rate *= 512 / config.batch_size
    config.batch_size = 512
    config.num_epochs = 20
    config.warmup_epochs = 1
    config.decay_epochs = (10, 15) if config.decay == "steps" else ()
    config.mixup_off_epochs = 2  # For `--config.mixup=1`, too. Without mixup it changes nothing.
    config.ema_decay = 0.99 if config.ema_decay else 0
    config.train_split = "train[:45000]"
    config.validation_split = "train[45000:]"
    config.eval_every_epochs = 0
    return config
