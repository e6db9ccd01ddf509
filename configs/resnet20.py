"""ResNet20: 0.27 million parameters.

python main.py --config=configs/resnet20.py        # The card's recipe.
python main.py --config=configs/resnet20.py:paper  # The paper's; also strong and fast.
"""

from resnet_cifar.config import Config
from resnet_cifar.recipes import make_config


def get_config(recipe: str = "card") -> Config:
    return make_config(recipe, depth=20)
