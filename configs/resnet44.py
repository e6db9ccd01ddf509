"""ResNet44 on CIFAR-10: 0.66 million parameters, 160 epochs with the recipe of the model card.

python main.py --config=configs/resnet44.py        # The model card's recipe.
python main.py --config=configs/resnet44.py:paper  # The paper's; others: strong, best, fast.

Accuracy and time on an H100: the table in README.md.
"""

from resnet_cifar.config import Config
from resnet_cifar.recipes import make_config


def get_config(recipe: str = "card") -> Config:
    return make_config(recipe, depth=44)
