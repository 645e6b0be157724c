"""Addition to memory that others add to at the same time, without an order among the additions.

Pallas' own `atomic_add` for Triton asks for acquire-release order: a memory fence and an emptied cache for each of the
hundred million additions of a backward pass. A sum needs no order, so this module says "relaxed" instead. It alone
touches private parts of JAX (0.10 to 0.12); where they have moved, it uses Pallas' own and warns once.
"""

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton


def add_rows(ref, index: jax.Array, rows: jax.Array, mask: jax.Array, *, interpret: bool) -> None:
    """ref[index[i], :] += rows[i] for each i whose mask is set; repeated indices add up.

    Args:
        ref: [n, d] float32 reference of a kernel.
        index: [k] int32, every one a row of `ref`, also where the mask is not set.
        rows: [k, d] float32.
        mask: [k] bool.
        interpret: the kernel runs as plain JAX operations, in which Pallas' own addition loses repeated indices.
    """
    if interpret:
        ref[...] = ref[...].at[index].add(jnp.where(mask[:, None], rows, 0))
        return
    add = relaxed_add() or triton.atomic_add
    add(ref, (index, slice(None)), rows, mask=jnp.broadcast_to(mask[:, None], rows.shape))


@functools.cache
def relaxed_add() -> Callable | None:
    """Like Pallas' `atomic_add`, relaxed; None, after a warning, where JAX's private parts have moved."""
    try:
        return _make_relaxed_add()
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"jax {jax.__version__} has moved what relaxed atomic additions are made of ({error}). Gradients stay "
            "right but are slower: use a JAX that kernels/README.md names.",
            stacklevel=2,
        )
        return None


def _make_relaxed_add() -> Callable:
    from jax._src import core, tree_util
    from jax._src.lib.mlir import ir
    from jax._src.lib.triton import dialect
    from jax._src.pallas.triton import lowering, primitives
    from jax._src.state import primitives as state
    from jax._src.state.types import ReadEffect, WriteEffect

    ordered, add = primitives._atomic_lowering_rule, primitives.AtomicOpType.ADD
    relaxed = int(dialect.MemSemantic.RELAXED)
    primitive = core.Primitive("relaxed_add")

    @primitive.def_effectful_abstract_eval
    def abstract_eval(*flat, args_tree):
        _, _, rows, _ = args_tree.unflatten(flat)
        return core.ShapedArray(rows.shape, rows.dtype), {ReadEffect(0), WriteEffect(0)}

    @lowering.register_lowering(primitive)
    def lower(context, *flat, args_tree):
        before = ordered(context, *flat, args_tree=args_tree, atomic_type=add)
        operation = before.owner
        operation.attributes["sem"] = ir.IntegerAttr.get(operation.attributes["sem"].type, relaxed)
        return before

    def relaxed_add(ref, index, rows, *, mask):
        ref, transforms = state.get_ref_and_transforms(ref, index, "relaxed_add")
        flat, args_tree = tree_util.tree_flatten((ref, transforms, rows, mask))
        return primitive.bind(*flat, args_tree=args_tree)

    return relaxed_add
