"""One HTML page that says how good saved predictions are, what is wrong with them, and what to do about it."""

from maskdino_jax.evaluation.report.predictions import LABEL_MAPS, Predictions, label_map_path
from maskdino_jax.evaluation.report.report import About, write_report

__all__ = ["LABEL_MAPS", "About", "Predictions", "label_map_path", "write_report"]
