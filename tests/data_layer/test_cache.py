"""The cache of decoded images: it changes nothing but the time, and never grows beyond its limit."""

import dataclasses
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.data.cache import CachedDataset, cached
from maskdino_jax.data.objects import Segments
from maskdino_jax.data.transforms import Example

HALF = 2**19  # bytes of an example: two fit into a megabyte


class Counting:
    """Examples of half a megabyte, and which were read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.read.append(index)
        return Example(
            image=np.full((1, HALF // 4, 3), index, np.uint8),
            labels=np.array([index]),
            is_thing=np.ones(1, bool),
            objects=Segments(np.zeros((1, HALF // 16), np.int32), (0,)),
        )

    def image_id(self, index):
        return f"image {index}"


def test_what_is_kept_is_not_read_again_and_the_least_recently_used_goes_first():
    source = Counting()
    dataset = CachedDataset(source, megabytes=1)
    for index in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, and 1 that of 2
        assert dataset[index].labels == [index]
    assert source.read == [0, 1, 2, 1]


def kept_bytes(dataset):
    return sum(example.nbytes for example in dataset._kept.values())


def test_the_limit_holds_whatever_is_read():
    dataset = CachedDataset(Counting(), megabytes=1)
    for index in np.random.default_rng(0).integers(0, 5, 50).tolist():
        assert dataset[index].labels == [index]
        assert kept_bytes(dataset) == dataset._bytes <= 2**20
    assert kept_bytes(dataset) == 2 * HALF


def test_an_example_larger_than_the_limit_is_not_kept():
    class Large(Counting):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), image=np.zeros((1, 2**19, 3), np.uint8))

    source = Large()
    dataset = CachedDataset(source, megabytes=1)
    assert dataset[3].labels == dataset[3].labels == [3]
    assert source.read == [3, 3]
    assert kept_bytes(dataset) == 0


def test_threads_share_it():
    source = Counting()
    dataset = CachedDataset(source, megabytes=2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: int(dataset[index].labels[0]), [0, 1, 2] * 40))
    assert found == [0, 1, 2] * 40
    assert dataset._bytes == kept_bytes(dataset) == 3 * HALF


def test_it_answers_like_the_data_set_and_travels_empty(coco_panoptic):
    dataset = open_dataset(coco_panoptic, "train")
    kept = CachedDataset(dataset, megabytes=100)
    np.testing.assert_array_equal(kept[1].image, dataset[1].image)
    copy = pickle.loads(pickle.dumps(kept))
    assert len(pickle.dumps(kept)) < len(pickle.dumps(dataset)) + 1000
    assert kept_bytes(copy) == 0
    assert (len(copy), copy.image_id(2), copy.catalog) == (4, dataset.image_id(2), dataset.catalog)
    with pytest.raises(AttributeError):
        _ = copy.no_such_thing


def test_no_megabytes_mean_no_cache(coco_panoptic):
    dataset = open_dataset(coco_panoptic, "train")
    assert cached(dataset, 0) is dataset


@pytest.mark.parametrize("augmentation", ["large_scale_jitter", "short_edge"])
def test_batches_are_the_same_with_a_cache(nuclei, augmentation):
    """Over three epochs, with every kind of change to an image: whoever wrote into an example would show."""
    nuclei.data.augmentation = augmentation
    nuclei.data.short_sides, nuclei.data.color_jitter = (64, 96), True
    dataset = open_dataset(nuclei.data, "train")
    dataset = dataclasses.replace(dataset, records=dataset.records[:4])
    take = lambda source: list(itertools.islice(train_batches(source, nuclei, 0), 6))
    plain, kept = take(dataset), take(cached(dataset, 64))
    jax.tree.map(np.testing.assert_array_equal, kept, plain)
