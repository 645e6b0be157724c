"""Small street scenes at random: labels, numbers of objects, predictions; and their scores by the official script."""

import numpy as np
from jaxtyping import Int

LABELS = (0, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 31, 32, 33)  # 0 and 29 are ignored
THINGS = (24, 25, 26, 27, 28, 29, 31, 32, 33)  # 29 is a caravan
OFFICIAL = {  # of scenes 0 to 2, by evalPixelLevelSemanticLabeling of cityscapesScripts 2.3.0
    "IoU": 0.4467095519664497,
    "iIoU": 0.6333722551582022,
    "IoU_sup": 0.4928251716823588,
    "iIoU_sup": 0.6922566294036051,
}


def scene(seed: int, height: int = 24, width: int = 40) -> tuple[Int[np.ndarray, "h w"], ...]:
    """Label of each pixel, its number in `instanceIds`, and its predicted label, which is never an ignored one."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(LABELS, (height // 4, width // 4))
    labels = np.kron(coarse, np.ones((4, 4), int))
    numbers = labels.copy()
    objects = np.kron(rng.integers(-1, 4, (height // 8, width // 8)), np.ones((8, 8), int))  # -1: a group of things
    thing = np.isin(labels, THINGS) & (objects >= 0)
    numbers[thing] = 1000 * labels[thing] + objects[thing]
    guess = rng.choice([label for label in LABELS if label not in (0, 29)], labels.shape)
    wrong = (rng.random(labels.shape) < 0.4) | np.isin(labels, (0, 29))
    return labels, numbers, np.where(wrong, guess, labels)
