"""The same 200 examples, to the last bit, whatever the number of workers, hosts and restarts."""

import hashlib
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import Config, DataConfig, SplitConfig
from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.data.loader import epoch_order

RECORDS, EXAMPLES, BATCH = 20, 200, 8  # epochs begin within a batch
STEPS = EXAMPLES // BATCH
BROKEN = (3, 4, 15)  # records whose image is cut short where some are; two of them are neighbours
VARIANTS = {
    "segments": ("coco_panoptic", 0.0, "stop"),
    "instances": ("coco_instances", 0.0, "stop"),
    "segments, pasted, some unreadable": ("coco_panoptic", 0.7, "skip"),
    "instances, pasted, some unreadable": ("coco_instances", 0.7, "skip"),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of 24 x 32 pixels with three segments each, two of them things; and again, three of them broken."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    tables = {kind: {"images": [], "annotations": [], "categories": []} for kind in ("instances", "panoptic")}
    for content in tables.values():
        content["categories"] = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    for folder in ("sound", "broken", "maps"):
        (root / folder).mkdir()
    for record in range(RECORDS):
        name = f"{record}.png"
        image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        for folder in ("sound", "broken"):
            image.save(root / folder / name)
        if record in BROKEN:
            (root / "broken" / name).write_bytes((root / "sound" / name).read_bytes()[:500])
        ids, (x, y) = np.zeros((24, 32, 3), np.uint8), rng.integers(0, 8, 2).tolist()
        ids[:6, :, 0], ids[y + 8 : y + 16, x : x + 9, 0], ids[y : y + 6, x + 10 : x + 24, 0] = 1, 2, 3
        Image.fromarray(ids).save(root / "maps" / name)
        for content in tables.values():
            content["images"].append({"id": record, "file_name": name, "height": 24, "width": 32})
        segments = [{"id": id, "category_id": 1 if id > 1 else 2} for id in (1, 2, 3)]
        tables["panoptic"]["annotations"].append({"image_id": record, "file_name": name, "segments_info": segments})
        polygon = [x, y + 8, x + 9.5, y + 8, x + 9, y + 16, x, y + 15.5]
        runs = {"size": [24, 32], "counts": [24 * (x + 10) + y, 6, 18, 6, 24 * 32 - 24 * (x + 10) - y - 30]}
        for number, shape in enumerate(([polygon], runs)):
            entry = {"id": 2 * record + number, "image_id": record, "category_id": 1, "segmentation": shape}
            tables["instances"]["annotations"].append(entry)
    for kind, content in tables.items():
        (root / f"{kind}.json").write_text(json.dumps(content))
    return root


def config_of(variant: str, root: Path) -> Config:
    format, copy_paste, on_error = VARIANTS[variant]
    kind = format.removeprefix("coco_")
    split = SplitConfig(
        images="broken" if on_error == "skip" else "sound",
        annotations=f"{kind}.json",
        panoptic="maps" if kind == "panoptic" else "",
    )
    data = DataConfig(root=str(root), format=format, train=split, copy_paste=copy_paste, on_error=on_error, workers=0)
    data.image_size, data.scale, data.max_instances = (32, 32), (0.5, 2.0), 6
    config = Config(data=data)
    config.train.batch_size = BATCH
    return config


@pytest.fixture(scope="module")
def expected(root: Path) -> dict[str, list[str]]:
    """Hashes of the examples of each variant, in one run of one process."""
    return {variant: hashes(batches(config_of(variant, root))) for variant in VARIANTS}


def batches(config: Config, start: int = 0, stop: int = STEPS, **hosts: int) -> list:
    with train_batches(open_dataset(config.data, "train"), config, start, **hosts) as stream:
        return list(itertools.islice(stream, stop - start))


def hashes(found: list) -> list[str]:
    """One for each example: of all bytes of its image, masks, boxes, labels, and of what is counted."""
    rows = [
        jax.tree.map(lambda array, row=row: array[row], batch) for batch in found for row in range(len(batch.images))
    ]
    digests = []
    for row in rows:
        digest = hashlib.sha256()
        for array in jax.tree.leaves(row):
            digest.update(np.ascontiguousarray(array).tobytes())
        digests.append(digest.hexdigest())
    return digests


def visited(found: list) -> np.ndarray:
    return np.concatenate([batch.records for batch in found])


def joined(shares: list[list]) -> list[str]:
    """Hashes of the batches that the hosts hold together."""
    whole = [jax.tree.map(lambda *rows: np.concatenate(rows), *parts) for parts in zip(*shares, strict=True)]
    return hashes(whole)


@variants
def test_another_run_gives_them_again(variant, root, expected):
    assert hashes(batches(config_of(variant, root))) == expected[variant]


@variants
def test_they_are_what_the_variant_says(variant, root, expected):
    config = config_of(variant, root)
    found = batches(config)
    skipped, unreadable = sum(batch.skipped.sum() for batch in found), np.isin(visited(found), BROKEN).sum()
    assert len(expected[variant]) == EXAMPLES
    if config.data.on_error == "skip":
        assert unreadable == 0
        assert skipped > EXAMPLES * len(BROKEN) / RECORDS  # each epoch meets each of them, and pasting some more
    else:
        assert skipped == 0
        assert len(set(expected[variant])) > 0.9 * EXAMPLES  # some crops see nothing but padding


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("variant", ["segments", "instances, pasted, some unreadable"])
def test_worker_processes_give_them_too(variant, workers, root, expected):
    config = config_of(variant, root)
    config.data.workers = workers
    assert hashes(batches(config)) == expected[variant]


@variants
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_give_them_together(variant, hosts, root, expected):
    config = config_of(variant, root)
    shares = [batches(config, process_index=host, process_count=hosts) for host in range(hosts)]
    assert joined(shares) == expected[variant]


@variants
@pytest.mark.parametrize("step", [1, 12, 20])
def test_a_restart_gives_the_rest_of_them(variant, step, root, expected):
    assert hashes(batches(config_of(variant, root), step)) == expected[variant][step * BATCH :]


def test_a_restart_on_other_hosts_with_other_workers_gives_the_rest_of_them(root, expected):
    variant = "segments, pasted, some unreadable"
    config = config_of(variant, root)
    first = [batches(config, 0, 10, process_index=host, process_count=4) for host in range(4)]
    config.data.workers = 1
    second = [batches(config, 10, process_index=host, process_count=2) for host in range(2)]
    assert joined(first) + joined(second) == expected[variant]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_visit_each_record_once_an_epoch(hosts, root):
    config = config_of("segments", root)
    shares = [visited(batches(config, process_index=host, process_count=hosts)) for host in range(hosts)]
    in_order = np.stack([share.reshape(STEPS, BATCH // hosts) for share in shares], axis=1).reshape(-1, RECORDS)
    np.testing.assert_array_equal(np.sort(in_order, axis=1), np.tile(np.arange(RECORDS), (EXAMPLES // RECORDS, 1)))


@pytest.mark.parametrize("step", [0, 12])
def test_unreadable_images_leave_the_places_of_the_others_alone(step, root):
    """Every position shows what it would show, or the next readable image of the epoch for a broken one."""
    config = config_of("segments", root)
    sound = batches(config, step)
    config.data.train.images, config.data.on_error = "broken", "skip"
    found = batches(config, step)
    replaced = np.isin(visited(sound), BROKEN)
    np.testing.assert_array_equal(visited(found) != visited(sound), replaced)
    np.testing.assert_array_equal(np.array(hashes(found))[~replaced], np.array(hashes(sound))[~replaced])
    epochs = epoch_orders(config)
    for place in np.flatnonzero(replaced):
        order, start = epochs[(step * BATCH + place) // RECORDS], (step * BATCH + place) % RECORDS
        following = [record for record in np.roll(order, -start) if record not in BROKEN]
        assert visited(found)[place] == following[0]


def epoch_orders(config: Config) -> np.ndarray:
    return np.stack([epoch_order(config.train.seed, epoch, RECORDS) for epoch in range(EXAMPLES // RECORDS)])
