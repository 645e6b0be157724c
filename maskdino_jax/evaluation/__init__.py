"""How good predictions are: COCO box and mask AP, panoptic quality, mean IoU."""

from maskdino_jax.evaluation.evaluate import evaluate, metrics_table
from maskdino_jax.evaluation.panoptic_quality import panoptic_quality

__all__ = ["evaluate", "metrics_table", "panoptic_quality"]
