"""ResNet56."""

from resnet_cifar.config import Config, make_config


def get_config(recipe: str = "card") -> Config:
    return make_config(recipe, depth=56)
