"""Data sets on disk -> batches of NumPy arrays."""

from maskdino_jax.data.catalog import Catalog, Category
from maskdino_jax.data.coco import CocoDataset
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.datasets import open_dataset
from maskdino_jax.data.images import PreparedImage, load_image, prepare_image
from maskdino_jax.data.loader import Batches, eval_batches, train_batches
from maskdino_jax.data.semantic import SemanticDataset

__all__ = [
    "Batches",
    "Catalog",
    "Category",
    "CocoDataset",
    "Dataset",
    "PreparedImage",
    "SemanticDataset",
    "eval_batches",
    "load_image",
    "open_dataset",
    "prepare_image",
    "train_batches",
]
