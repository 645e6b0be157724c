"""Other ways to write multi-scale deformable attention, to measure ours against; arguments as of `deform_attn`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def plain_gather(value, offsets, logits, references, level_sizes):
    """One gather of all corners of all samples, then their weighted sum: the shortest program."""
    b, q, m, _, p, _ = offsets.shape
    sizes = jnp.array([(width, height) for height, width in level_sizes])
    starts = [sum(h * w for h, w in level_sizes[:i]) for i in range(len(level_sizes))]
    references = references[:, :, None, None, None]
    if references.shape[-1] == 4:
        offsets = offsets / p * references[..., 2:] * 0.5 * sizes[:, None]
    points = references[..., :2] * sizes[:, None] + offsets - 0.5
    # [b, q, m, l, p, corner, (x, y)]
    corners = jnp.floor(points)[..., None, :] + jnp.array([(0, 0), (1, 0), (0, 1), (1, 1)], points.dtype)
    inside = jnp.all((corners >= 0) & (corners < sizes[:, None, None]), axis=-1)
    weights = jnp.where(inside, jnp.prod(1 - jnp.abs(points[..., None, :] - corners), axis=-1), 0)
    weights *= jax.nn.softmax(logits, axis=-1).reshape(b, q, m, -1, p, 1)
    column, row = jnp.moveaxis(jnp.clip(corners, 0, sizes[:, None, None] - 1).astype(jnp.int32), -1, 0)
    tokens = jnp.array(starts)[:, None, None] + row * sizes[:, None, None, 0] + column
    tokens = tokens.transpose(0, 2, 1, 3, 4, 5).reshape(b, m, -1, 1)
    rows = value.astype(offsets.dtype).transpose(0, 2, 1, 3)  # before the gather, so that its gradient adds up exactly
    found = jnp.take_along_axis(rows, tokens, axis=2, mode="promise_in_bounds")
    found = found.reshape(b, m, q, -1, value.shape[-1]) * weights.transpose(0, 2, 1, 3, 4, 5).reshape(b, m, q, -1, 1)
    return found.sum(axis=3).transpose(0, 2, 1, 3).reshape(b, q, -1).astype(value.dtype)


def grid_sample(value, offsets, logits, references, level_sizes):
    """Each level sampled as an image, channels first, the samples of all levels stacked and averaged.

    The order of operations that Deformable DETR gives for devices without its CUDA kernel.
    """
    b, q, m, levels, p, _ = offsets.shape
    weights = jax.nn.softmax(logits, axis=-1).reshape(b, q, m, levels, p)
    found, start = [], 0
    for level, (height, width) in enumerate(level_sizes):
        image = value[:, start : start + height * width].astype(offsets.dtype).transpose(0, 2, 3, 1)
        start += height * width
        centre, move, size = references[:, :, None, None], offsets[:, :, :, level], jnp.array([width, height])
        move = move / size if references.shape[-1] == 2 else move / p * centre[..., 2:] * 0.5
        x, y = jnp.moveaxis(((centre[..., :2] + move) * size - 0.5).transpose(0, 2, 1, 3, 4), -1, 0)  # [b, m, q, p]
        found.append(_sample_image(image, x.reshape(b, m, -1), y.reshape(b, m, -1), width, height))
    found = jnp.stack(found, axis=3).reshape(b, m, -1, levels, q, p)
    out = jnp.einsum("bmdlqp,bqmlp->bqmd", found, weights)
    return out.reshape(b, q, -1).astype(value.dtype)


def _sample_image(image, x, y, width, height):
    """Bilinear samples [b, m, d, n] of images [b, m, d, height * width] at pixels [b, m, n]."""
    left, top, total = jnp.floor(x), jnp.floor(y), 0
    for row in (top, top + 1):
        for column in (left, left + 1):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = jnp.where(inside, (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row)), 0)
            pixel = (jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)).astype(jnp.int32)
            total += (
                jnp.take_along_axis(image, pixel[:, :, None], axis=3, mode="promise_in_bounds") * weight[:, :, None]
            )
    return total


def torch_peers() -> dict[str, Callable]:
    """PyTorch's grid_sample by itself and compiled, where PyTorch is installed with CUDA; arguments are its tensors."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}

    def attend(value, offsets, logits, references, level_sizes):
        b, q, m, levels, p, _ = offsets.shape
        weights = logits.softmax(-1).view(b, q, m, levels, p).permute(0, 2, 1, 3, 4).reshape(b * m, 1, q, levels * p)
        found, start = [], 0
        for level, (height, width) in enumerate(level_sizes):
            image = value[:, start : start + height * width].float().permute(0, 2, 3, 1)
            start += height * width
            centre, move = references[:, :, None, None], offsets[:, :, :, level]
            size = torch.tensor([width, height], device=value.device)
            move = move / size if references.shape[-1] == 2 else move / p * centre[..., 2:] * 0.5
            grid = (2 * (centre[..., :2] + move) - 1).transpose(1, 2).reshape(b * m, q, p, 2)
            image = image.reshape(b * m, -1, height, width)
            found.append(torch.nn.functional.grid_sample(image, grid, align_corners=False))
        out = (torch.stack(found, dim=-2).flatten(-2) * weights).sum(-1)
        return out.view(b, -1, q).transpose(1, 2).to(value.dtype)

    return {"torch": attend, "torch compiled": torch.compile(attend)}


def run_torch(attend: Callable, arrays, level_sizes, backward: bool) -> tuple:
    """The result and, if wanted, the gradients by value, offsets and logits; of JAX arrays or PyTorch tensors."""
    import torch

    value, offsets, logits, references, grad = (torch.from_dlpack(a) for a in arrays)
    if not backward:
        with torch.no_grad():
            return (attend(value, offsets, logits, references, level_sizes),)
    inputs = [a.detach().requires_grad_() for a in (value, offsets, logits)]
    out = attend(*inputs, references, level_sizes)
    return out, *torch.autograd.grad(out, inputs, grad)
