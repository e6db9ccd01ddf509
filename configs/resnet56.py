"""ResNet56: 0.85 million parameters.

python main.py --config=configs/resnet56.py        # The card's recipe; 93.1 % of the test images, says the card.
python main.py --config=configs/resnet56.py:paper  # The paper's; also strong and fast.
"""

from resnet_cifar.config import Config
from resnet_cifar.recipes import make_config


def get_config(recipe: str = "card") -> Config:
    return make_config(recipe, depth=56)
