"""ResNet110: 1.7 million parameters.

  python main.py --config=configs/resnet110.py          # The card's recipe; result not measured yet.
  python main.py --config=configs/resnet110.py:paper    # The paper's.

The paper's recipe begins with 400 steps at a tenth of the learning rate, 1.14 epochs of 351 steps.
"""

from resnet_cifar.config import Config, make_config


def get_config(recipe: str = "card") -> Config:
    config = make_config(recipe, depth=110)
    if recipe == "paper":
        config.warmup, config.warmup_epochs = "constant", 1.14
    return config
