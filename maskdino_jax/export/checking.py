"""Whether an artifact gives the numbers of the live model."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from maskdino_jax.config import DataConfig
from maskdino_jax.data.images import resize_bilinear
from maskdino_jax.export.program import Program

TOLERANCE = {"logits": 1e-4, "boxes": 1e-5, "masks": 1e-3, "scores": 1e-4}  # largest absolute difference

_MASK_STRIDE = 4


def place(
    image: UInt8[np.ndarray, "h w 3"], canvas: tuple[int, int], data: DataConfig, share: float = 1.0
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], tuple[int, int]]:
    """The canvas with an image in its corner, and its size there (height, width).

    It is resized as for evaluation, or less if it would not fit; `share` shrinks it further.
    """
    height, width = image.shape[:2]
    by_data = min(data.eval_short_side / min(height, width), data.eval_long_side / max(height, width))
    scale = share * min(by_data, canvas[0] / height, canvas[1] / width)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    placed = np.zeros((*canvas, 3), np.uint8)
    placed[: size[0], : size[1]] = resize_bilinear(image, *size)
    return placed, size


def examples(
    image: UInt8[np.ndarray, "h w 3"], canvas: tuple[int, int], data: DataConfig
) -> tuple[UInt8[np.ndarray, "2 h2 w2 3"], Int[np.ndarray, "2 2"]]:
    """A batch of the image in its full size and in half of it, where most of the canvas is padding."""
    placed = [place(image, canvas, data, share) for share in (1.0, 0.5)]
    return np.stack([picture for picture, _ in placed]), np.array([size for _, size in placed], np.int32)


def live(
    program: Program, images: UInt8[np.ndarray, "b h w 3"], sizes: Int[np.ndarray, "b 2"]
) -> dict[str, Float[np.ndarray, "b ..."]]:
    """What the outputs of `program` should be, of the model as evaluation runs it and of NumPy."""
    detect = jax.jit(lambda variables, *batch: program.spec.bind(variables).detect(*batch))
    found = jax.tree.map(np.asarray, detect(program.variables, images, sizes, program.extents_of(sizes)))
    used = np.array(program.canvas) if program.extents_of(sizes) is None else program.extents_of(sizes)
    centre, half = found.boxes[..., :2], found.boxes[..., 2:] / 2
    corners = np.concatenate([centre - half, centre + half], axis=-1)
    pixels = np.broadcast_to(used, sizes.shape)[:, None, [1, 0, 1, 0]]
    expected = {"logits": found.logits, "boxes": corners * pixels / sizes[:, None, [1, 0, 1, 0]]}
    if program.masks:
        expected["masks"] = found.masks
    if program.spec.config.class_scores == "sigmoid":
        probabilities = 1 / (1 + np.exp(-found.logits.reshape(len(images), -1).astype(np.float64)))
        expected["scores"] = -np.sort(-probabilities, axis=1)[:, : program.top]
    return expected


def aligned(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`found` with the queries of each image in the order of `expected`.

    Queries are ordered by the scores of encoder tokens. Where two differ by less than rounding, another runtime may
    swap them; nothing in the decoder depends on their order.
    """
    result = {name: found[name].copy() for name in expected}
    for row in range(len(found["logits"])):
        values = [np.concatenate([side["logits"][row], side["boxes"][row]], axis=1) for side in (expected, found)]
        order = linear_sum_assignment(cdist(*values, "chebyshev"))[1]
        for name in {"logits", "boxes", "masks"} & set(result):
            result[name][row] = found[name][row][order]
    return result


def differences(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], sizes: Int[np.ndarray, "b 2"]
) -> dict[str, float]:
    """The largest absolute difference of each output, of masks within the images."""
    result, found = {}, aligned(found, expected)
    for name, values in expected.items():
        difference = np.abs(found[name] - values)
        if name == "masks":
            inner = -(-sizes // _MASK_STRIDE)
            parts = [rows[:, :height, :width] for rows, (height, width) in zip(difference, inner, strict=True)]
            difference = np.concatenate([part.ravel() for part in parts])
        result[name] = float(difference.max())
    return result


def require_agreement(
    run: Callable[..., Mapping[str, np.ndarray]],
    program: Program,
    images: UInt8[np.ndarray, "b h w 3"],
    sizes: Int[np.ndarray, "b 2"],
) -> dict[str, float]:
    """`differences` between what `run` computes and the live model.

    Raises:
        ValueError: one of them is larger than `TOLERANCE` allows.
    """
    found = differences(run(images, sizes), live(program, images, sizes), sizes)
    wrong = [f"{name} by {value:.2g} (allowed: {TOLERANCE[name]:g})" for name, value in found.items()
             if not value <= TOLERANCE[name]]  # fmt: skip
    if wrong:
        raise ValueError(
            f"the exported model differs from the live one: {', '.join(wrong)}. Nothing was written. Rounding may "
            "tip a decision, such as which pixels the mask behind an anchor box has: try another image with --images. "
            "If it differs there too, try another --format, or the versions that the constraints pin."
        )
    return found
