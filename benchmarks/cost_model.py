"""How many floating-point operations a training step of one image should take, counted by hand."""

import dataclasses

from maskdino_jax.config import BackboneConfig, Config

CLASSES = 80  # of COCO; their number hardly matters


@dataclasses.dataclass(frozen=True)
class Stage:
    """Operations of the forward pass, two for each multiplication, and how often the whole step does as much."""

    flops: float
    times: int  # 3: forward pass, gradient of the input, gradient of the weights; 1: no gradient


def train_step(config: Config, rows: int) -> dict[str, Stage]:
    """The products of one image, stage by stage; everything else (norms, activations, sampling) is not counted.

    For `configs/coco_instance.py:r50` at 1024 x 1024: s = 21,760 tokens, d = 256 channels, 65,536 mask pixels.

    Args:
        rows: pairs of a query and a target whose masks are compared, over all prediction sets.
    """
    model, (height, width) = config.model, config.data.image_size
    d, pixels, queries = model.hidden_dim, height * width // 16, model.decoder.num_queries
    slots = model.denoising.num_queries if model.denoising.mode != "none" else 0
    both, layers, encoder = queries + slots, model.decoder.layers, model.encoder
    strides = [4 * 2**i for i in range(4 - len(encoder.in_features), 4 - len(encoder.in_features) + encoder.num_levels)]
    tokens = [height // stride * (width // stride) for stride in strides]
    s, samples, classes = sum(tokens), model.num_heads * encoder.num_levels * model.num_points, CLASSES
    channels = [(4 if model.backbone.kind == "resnet" else 1) * model.backbone.width * 2**i for i in range(4)]
    inputs = channels[4 - len(encoder.in_features) :]
    extra = zip(tokens[len(inputs) :], [channels[-1]] + [d] * len(tokens), strict=False)
    projected = sum(t * fan_in for t, fan_in in zip(tokens, inputs, strict=False)) + sum(9 * t * c for t, c in extra)
    heads = 7 * d * d + d * classes + 4 * d  # three layers for boxes and for masks, of which one ends in 4 numbers
    points = config.loss.num_points
    sets = layers + 1 + (model.decoder.query_source == "encoder")
    attention = (
        4 * both * d * d + 2 * both * both * d + both * d * (3 * samples + 2 * d)
    )  # among queries, and to tokens
    decoder = layers * (attention + 2 * both * d * model.decoder.ffn_dim + 3 * both * d * d)
    stages = {
        "backbone": (backbone(model.backbone, height, width), 3),
        "input projections": (2 * projected * d, 3),
        "encoder, value and output": (encoder.layers * 4 * s * d * d, 3),
        "encoder, offsets and weights": (encoder.layers * 2 * s * d * 3 * samples, 3),
        "encoder, feed-forward": (encoder.layers * 4 * s * d * encoder.ffn_dim, 3),
        "mask features": (2 * pixels * d * (channels[0] + 9 * d + d), 3),
        "query selection": (2 * s * d * d, 3),
        "query selection, scores of all tokens": (2 * s * d * classes, 1),
        "decoder, values": (layers * 2 * s * d * d, 3),
        "decoder, queries and heads": (2 * decoder + 2 * (layers + 2) * both * heads, 3),
        "masks of selected queries": (2 * queries * pixels * d if model.decoder.box_init != "none" else 0, 1),
        "masks of rows": (2 * rows * pixels * d, 3),
        "matching, mask logits": (2 * sets * queries * points * d, 1),
        "matching, costs": (4 * sets * queries * points * config.data.max_instances, 1),
    }
    return {name: Stage(*stage) for name, stage in stages.items()}


def backbone(config: BackboneConfig, height: int, width: int) -> float:
    """Forward pass: a residual network's convolutions, or a Swin Transformer's projections and attention."""
    total = 0.0
    if config.kind == "resnet":
        total += 2 * height * width / 4 * 3 * 49 * config.width  # 7 x 7, stride 2
        fan_in, area = config.width, height * width / 16
        for stage, depth in enumerate(config.depths):
            c = config.width * 2**stage
            if stage:
                total += 2 * area * 0.75 * fan_in * c  # the first 1 x 1 convolution is before the stride
                area /= 4
            rest = (depth - 1) * 4 * c * c
            total += 2 * area * (fan_in * c + rest + depth * (9 * c * c + 4 * c * c) + fan_in * 4 * c)
            fan_in = 4 * c
        return total
    area, c = height * width / 16, config.width
    total += 2 * area * 48 * c
    for stage, depth in enumerate(config.depths):
        if stage:
            area, c = area / 4, 2 * c
            total += 2 * area * 2 * c * c  # four tokens of half the channels become one
        total += depth * 2 * area * (12 * c * c + 2 * config.window**2 * c)
    return total
