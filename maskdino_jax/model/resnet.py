"""ResNet backbone (He et al. 2016) with the stride in the 3x3 convolution, NHWC."""

from collections.abc import Iterable

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from maskdino_jax.config import BackboneConfig
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import ConvNorm, apply, relu
from maskdino_jax.ops.extents import halved, keep_inside

_HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 with a shortcut, projected where the shape changes."""

    def __init__(
        self, fan_in: int, width: int, *, stride: int, project: bool, norm: str, dtype: DTypeLike, rngs: Keys
    ) -> None:
        conv = lambda a, b, kernel, stride=1: ConvNorm(
            a, b, kernel, stride=stride, norm=norm, init=_HE_NORMAL, dtype=dtype, rngs=rngs
        )
        self.conv1 = conv(fan_in, width, 1)
        self.conv2 = conv(width, width, 3, stride)
        self.conv3 = conv(width, 4 * width, 1)
        self.shortcut = conv(fan_in, 4 * width, 1, stride) if project else None

    def __call__(
        self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None, training: bool
    ) -> Float[Array, "b h2 w2 d"]:
        dtype = self.conv1.conv.dtype
        y = relu(self.conv1(x, extent, training=training), dtype)
        y = relu(self.conv2(y, extent, training=training), dtype)
        y = self.conv3(y, halved(extent) if self.conv2.stride == 2 else extent, training=training)
        return relu(y + (x if self.shortcut is None else self.shortcut(x, extent, training=training)), dtype)


class ResNet(nnx.Module):
    """Feature maps `res2` to `res5` at strides 4, 8, 16 and 32."""

    def __init__(self, config: BackboneConfig, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.stem = ConvNorm(3, config.width, 7, stride=2, norm=config.norm, init=_HE_NORMAL, dtype=dtype, rngs=rngs)
        self.channels: dict[str, int] = {}
        fan_in = config.width
        for index, depth in enumerate(config.depths):
            name, width = f"res{index + 2}", config.width * 2**index
            blocks = []
            for block in range(depth):
                stride = 2 if block == 0 and index > 0 else 1
                blocks.append(
                    Bottleneck(
                        fan_in,
                        width,
                        stride=stride,
                        project=block == 0,
                        norm=config.norm,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                fan_in = 4 * width
            setattr(self, name, nnx.List(blocks))
            self.channels[name] = fan_in

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extents: Int[Array, "b 2"] | None = None,
        keys: Key[Array, "b"] | None = None,
        *,
        remat: bool = False,
    ) -> dict[str, Float[Array, "b h2 w2 c"]]:
        """`extents`: what each image occupies of the canvas, in pixels; `keys`: given in training, None otherwise.

        `remat`: the backward pass computes each stage again instead of keeping more than its input. The input of a
        block, float32 for the sake of its shortcut, is as large as all that is kept inside.
        """
        training = keys is not None
        x, extent = relu(self.stem(images, extents, training=training), self.stem.conv.dtype), halved(extents)
        x = keep_inside(x, extent)  # nothing is negative here: zeros never win
        x, extent = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))), halved(extent)
        maps = {}
        for name in self.channels:

            def run(
                blocks: Iterable[Bottleneck], x: Array, extent: Array | None = extent
            ) -> tuple[Array, Array | None]:
                for block in blocks:
                    x = block(x, extent, training)
                    extent = halved(extent) if block.conv2.stride == 2 else extent
                return x, extent

            x, extent = apply(getattr(self, name), run, x, remat=remat)
            maps[name] = x
        return maps
