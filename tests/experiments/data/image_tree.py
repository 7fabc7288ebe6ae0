"""Small folders of real photographs, laid out like ImageNet."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

CLASSES = ["n01", "n02", "n03"]


def make_image_tree(root: Path) -> Path:
    """Write ten training and four test images a class, cut out of two photographs, in many sizes and four odd modes."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                width, height = generator.integers(40, 140, 2)
                left, top = generator.integers(0, 640 - width), generator.integers(0, 427 - height)
                image = photographs[index % 2].crop((left, top, left + width, top + height))
                image.save(folder / f"{name}_{index}.JPEG", quality=90)
    for index, mode in enumerate(("L", "CMYK", "RGBA", "P")):
        path = root / "train" / "n02" / f"n02_{index}.JPEG"
        kind = "JPEG" if mode in ("L", "CMYK") else "PNG"  # ImageNet, too, has a PNG whose name ends in JPEG.
        Image.open(path).convert(mode).save(path, kind)
    return root


def truncate(path: Path) -> None:
    """Cut the last 400 bytes off a file, so that its image is damaged."""
    path.write_bytes(path.read_bytes()[:-400])


def make_own_images(root: Path, images: int = 30, classes: tuple[str, ...] = ("cat", "dog", "emu")) -> Path:
    """Write folders of classes without splits: images of a class have stripes of one direction, in noise."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        angle = np.pi * label / len(classes)
        for index in range(images):
            y, x = np.mgrid[0:32, 0:32] * 0.8
            waves = np.sin(x * np.cos(angle) + y * np.sin(angle) + generator.uniform(0, 6))
            pixels = 128 + 60 * waves[..., None] + generator.normal(0, 30, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{index}.png")
    return root
