"""A small panoptic data set drawn with letters, and a predictor that knows its ground truth."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from maskdino_jax.config import Config, DataConfig, InferenceConfig, SplitConfig
from maskdino_jax.data import CocoDataset, open_dataset
from maskdino_jax.structures import EvalBatch, Outputs

CATEGORIES = [
    {"id": 90, "name": "sky", "isthing": 0},
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 7, "name": "bird", "isthing": 1},
]
# A letter is a segment of 4 x 4 pixels: a, b, p, q cars, c a bird, d a crowd of birds, s sky, "." unlabelled.
DRAWINGS = [
    """
    aabbsssss...
    aabbsssss...
    aabbsssss...
    ccccsssssddd
    ccccssssdddd
    ........dddd
    ............
    ............
    """,
    """
    ss..pp..
    ss..pp..
    ss......
    ssqqqq..
    ssqqqq..
    ssqqqq..
    ........
    ........
    ........
    ........
    ........
    s.......
    """,
]
CATEGORY_OF = {"a": 3, "b": 3, "p": 3, "q": 3, "c": 7, "d": 7, "s": 90}
CROWD = "d"
SURE = 20.0  # a logit


def write_blocks(root: Path) -> CocoDataset:
    """Write the data set into a folder and open it."""
    tables = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number, drawing in enumerate(DRAWINGS, 500):
        letters = np.array([list(line) for line in drawing.split()]).repeat(4, axis=0).repeat(4, axis=1)
        _paint(root, number, letters, tables)
    (root / "panoptic.json").write_text(json.dumps(tables))
    return open_dataset(blocks_config(root).data, "val")


def blocks_config(root: Path) -> Config:
    """Nothing is resized; images are padded to multiples of 32."""
    val = SplitConfig(images="val", annotations="panoptic.json", panoptic="panoptic")
    data = DataConfig(root=str(root), val=val, workers=0, eval_short_side=32, eval_long_side=64, eval_canvas="exact")
    return Config(data=data, inference=InferenceConfig(batch_size=2))


def _paint(root: Path, number: int, letters: np.ndarray, tables: dict) -> None:
    codes = np.frompyfunc(ord, 1, 1)(letters).astype(np.int64)
    ids = np.where(letters == ".", 0, codes * 70001)  # large ids, which take all three channels
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    for folder in ("val", "panoptic"):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(colours).save(root / folder / f"{number}.png")
    info = [
        {"id": ord(letter) * 70001, "category_id": CATEGORY_OF[letter], "iscrowd": int(letter == CROWD)}
        for letter in sorted(set(letters.ravel().tolist()) - {"."})
    ]
    tables["images"].append(
        {"id": number, "file_name": f"{number}.png", "height": letters.shape[0], "width": letters.shape[1]}
    )
    tables["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": info})


def perfect(dataset: CocoDataset, batch: EvalBatch, *, silent: bool = False) -> Outputs:
    """One sure query for each segment of the ground truth, crowds included; none if `silent`."""
    canvas = batch.images.shape[1:3]
    rows = [
        _perfect_row(dataset, int(record), canvas, silent or not valid)
        for record, valid in zip(batch.records, batch.valid, strict=True)
    ]
    arrays = {name: np.stack([row[name] for row in rows]) for name in ("logits", "boxes", "masks")}
    return Outputs(**arrays, mask_features=None, proposals=None, heads=None)


def _perfect_row(dataset: CocoDataset, record: int, canvas: tuple[int, int], silent: bool) -> dict[str, np.ndarray]:
    queries, height, width = 9, *canvas
    logits = np.full((queries, dataset.catalog.num_classes), -SURE, np.float32)
    boxes = np.full((queries, 4), 0.5, np.float32)
    masks = np.full((queries, height, width), -SURE, np.float32)  # at full size, so that no corner is rounded
    ids = dataset.panoptic_map(record)
    ids = np.pad(ids, [(0, max(0, height - ids.shape[0])), (0, max(0, width - ids.shape[1]))])[:height, :width]
    for query, segment in enumerate([] if silent else dataset.panoptic_records(record)):
        logits[query, dataset.catalog.index(segment["category_id"])] = SURE
        y, x = (np.flatnonzero((ids == segment["id"]).any(axis=axis)) for axis in (1, 0))
        corners = np.array([x[0], y[0], x[-1] + 1, y[-1] + 1]) / [width, height, width, height]
        boxes[query] = *(corners[:2] + corners[2:]) / 2, *corners[2:] - corners[:2]
        masks[query] = np.where(ids == segment["id"], SURE, -SURE)
    return {"logits": logits, "boxes": boxes, "masks": masks}
