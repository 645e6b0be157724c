"""How good predictions are: COCO box and mask AP, panoptic quality, mean IoU."""

from maskdino_jax.evaluation.evaluate import evaluate, metrics_table
from maskdino_jax.evaluation.saved import score_instances, score_panoptic

__all__ = ["evaluate", "metrics_table", "score_instances", "score_panoptic"]
