"""Device code for Mask DINO's hot operations. Knows nothing of the model and imports only JAX."""

from maskdino_kernels.ms_deform_attn import ms_deform_attn, ms_deform_attn_backward, unsupported

__all__ = ["ms_deform_attn", "ms_deform_attn_backward", "unsupported"]
