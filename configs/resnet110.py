"""ResNet110 on CIFAR-10: 1.7 million parameters, 160 epochs with the recipe of the model card.

python main.py --config=configs/resnet110.py        # The model card's recipe.
python main.py --config=configs/resnet110.py:paper  # The paper's; others: strong, best, fast.

Its accuracy and time have not been measured here yet.
"""

from resnet_cifar.config import Config
from resnet_cifar.recipes import make_config


def get_config(recipe: str = "card") -> Config:
    return make_config(recipe, depth=110)
