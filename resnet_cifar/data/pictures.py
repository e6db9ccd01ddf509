"""Pictures become uint8 RGB of 32 x 32 pixels.

The largest centred square of a picture of another size is scaled by Pillow's bicubic filter, which
averages when it shrinks. Transparent pixels become white.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_cifar.errors import UserError

SIDE = 32


def read_picture(path: Path) -> np.ndarray:
    """Return a picture as uint8 [32, 32, 3]; UserError if Pillow can't read it."""
    path = existing(path)
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            return fit(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that Pillow can read") from None
    except Exception as error:  # Each of Pillow's formats has its own.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"the picture {path} can't be read: {reason}") from error


def fit(image: Image.Image) -> np.ndarray:
    """Return an upright picture's largest centred square, scaled to uint8 [32, 32, 3] in RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC))


def files_below(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted, without hidden ones."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        p for p in found if not any(x.startswith(".") for x in p.relative_to(folder).parts)
    )


def existing(path: Any) -> Path:
    """Return the path of a file or folder; UserError if there is none."""
    try:
        path = Path(path).expanduser()
        found = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): check the path") from error
    if not found:
        raise UserError(f"there is no file or folder {path}: check the path")
    return path
