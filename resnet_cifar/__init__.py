"""CIFAR ResNets in JAX: the model, the jitted steps and the parts of the recipes."""

from resnet_cifar.data import Images, augment, load_images, normalize
from resnet_cifar.errors import UserError
from resnet_cifar.models import ResNet, uniform_scale
from resnet_cifar.optim import learning_rate_schedule, make_optimizer
from resnet_cifar.pretrained import Preprocessing, load
from resnet_cifar.state import TrainState, averaged, create_train_state
from resnet_cifar.steps import eval_step, train_step

__version__ = "0.1.0"

__all__ = [
    "Images",
    "Preprocessing",
    "ResNet",
    "TrainState",
    "UserError",
    "augment",
    "averaged",
    "create_train_state",
    "eval_step",
    "learning_rate_schedule",
    "load",
    "load_images",
    "make_optimizer",
    "normalize",
    "train_step",
    "uniform_scale",
]
