"""ResNet44: 0.66 million parameters.

python main.py --config=configs/resnet44.py        # The card's recipe.
python main.py --config=configs/resnet44.py:paper  # The paper's; also strong and fast.
"""

from resnet_cifar.config import Config
from resnet_cifar.recipes import make_config


def get_config(recipe: str = "card") -> Config:
    return make_config(recipe, depth=44)
