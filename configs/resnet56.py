"""ResNet56: 0.85 million parameters.

python main.py --config=configs/resnet56.py
"""

from resnet_cifar.config import Config, make_config


def get_config(recipe: str = "card") -> Config:
    return make_config(recipe, depth=56)
