"""An evaluation of predictions made of the ground truth, by one process or by several together.

As a program it is one of several:

    python -m tests.evaluation.shares ADDRESS PROCESSES INDEX FOLDER
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from maskdino_jax.data import CocoDataset, open_dataset
from maskdino_jax.evaluation.evaluate import evaluate
from maskdino_jax.evaluation.gathering import gathered, own_copy, own_mesh
from maskdino_jax.meshes import make_mesh
from maskdino_jax.structures import EvalBatch, Outputs
from tests.e2e.conftest import smallest

QUERIES, STRIDE = 24, 4


def guess(dataset: CocoDataset, batch: EvalBatch) -> Outputs:
    """The segments of the truth, moved a little, some with a wrong class; the same for the same image."""
    height, width = (side // STRIDE for side in batch.images.shape[1:3])
    shape = len(batch.records), QUERIES
    logits = np.full((*shape, dataset.catalog.num_classes), -9, np.float32)
    boxes, masks = np.full((*shape, 4), 0.5, np.float32), np.full((*shape, height, width), -9, np.float32)
    for row in np.flatnonzero(batch.valid):
        record = int(batch.records[row])
        rng = np.random.default_rng(record)
        ids = dataset.panoptic_map(record)
        y, x = (
            np.arange(side) * STRIDE * ids.shape[axis] // batch.sizes[row][axis]
            for axis, side in enumerate((height, width))
        )
        small = ids[np.minimum(y, ids.shape[0] - 1)[:, None], np.minimum(x, ids.shape[1] - 1)]
        for query, segment in enumerate(dataset.panoptic_records(record)[:QUERIES]):
            label = dataset.catalog.index(segment["category_id"]) if rng.random() < 0.8 else 0
            logits[row, query, label] = rng.normal(0, 2)
            mask = np.roll(small == segment["id"], rng.integers(-1, 2, 2), (0, 1))
            masks[row, query] = np.where(mask, 4, -4)
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            if len(rows):
                low, high = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]]) / (width, height)
                boxes[row, query] = *(low + high) / 2, *high - low
    arrays = {"logits": logits, "boxes": boxes, "masks": masks}
    return Outputs(**jax.tree.map(jnp.asarray, arrays), mask_features=None, proposals=None, heads=None)


def run(folder: Path) -> dict[str, float]:
    """Metrics of this process; predictions go to `folder`."""
    config = smallest()
    config.data.eval_short_side, config.data.eval_long_side = 256, 384
    dataset = open_dataset(config.data, "val")
    return evaluate(lambda batch: guess(dataset, batch), dataset, config, folder)


def check_own_copy() -> None:
    """An array that is divided among all devices is whole on those of each process."""
    everywhere = make_mesh(fsdp=jax.device_count())
    own, values = own_mesh(everywhere), np.arange(8.0)
    divided = jax.sharding.NamedSharding(everywhere, jax.sharding.PartitionSpec("fsdp"))
    array = jax.make_array_from_callback(values.shape, divided, lambda part: values[part])
    found = own_copy({"x": array}, everywhere, own)["x"]
    assert found.sharding.device_set == set(jax.local_devices())
    np.testing.assert_array_equal(found, values)


def main(address: str, processes: str, index: str, folder: str) -> None:
    jax.distributed.initialize(address, int(processes), int(index))
    assert gathered("x" * int(index)) == ["x" * n for n in range(int(processes))]
    check_own_copy()
    Path(folder, f"metrics{index}.json").write_text(json.dumps(run(Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
