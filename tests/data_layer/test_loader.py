"""The order of training records, and that it depends on nothing but seed, epoch and record."""

import dataclasses
import itertools
import multiprocessing
import time

import jax
import numpy as np
import pytest
from absl import flags

from maskdino_jax.data import eval_batches, open_dataset, prepare_image, train_batches
from maskdino_jax.data.loader import epoch_order
from maskdino_jax.data.masks import unpack_mask


def take(config, count, start_step=0, **hosts):
    with train_batches(open_dataset(config.data, "train"), config, start_step, **hosts) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def visited(batches):
    return np.concatenate([batch.records for batch in batches])


def test_an_epoch_visits_each_record_once_and_the_next_in_another_order(nuclei):
    nuclei.train.batch_size = 25
    batches = take(nuclei, 8)
    first, second = visited(batches[:4]), visited(batches[4:])
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    np.testing.assert_array_equal(np.sort(second), np.arange(100))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, epoch_order(0, 0, 100))


def test_another_epoch_augments_a_record_otherwise(nuclei):
    nuclei.train.batch_size = 100
    first, second = take(nuclei, 2)
    place = lambda batch: int(np.flatnonzero(batch.records == 17)[0])
    assert not np.array_equal(first.images[place(first)], second.images[place(second)])


def test_the_seed_decides(nuclei):
    first = take(nuclei, 2)
    assert_equal(take(nuclei, 2), first)
    nuclei.train.seed = 1
    assert not np.array_equal(visited(take(nuclei, 2)), visited(first))


def test_resuming_at_a_step_continues_the_uninterrupted_stream(nuclei):
    nuclei.train.batch_size = 8
    whole = take(nuclei, 16)  # across the end of the epoch at 12.5 steps
    assert_equal(take(nuclei, 5, start_step=11), whole[11:])


def test_hosts_share_each_batch_among_them(nuclei):
    nuclei.train.batch_size = 4
    alone = take(nuclei, 30)
    hosts = [take(nuclei, 30, process_index=index, process_count=2) for index in range(2)]
    together = [jax.tree.map(lambda *rows: np.concatenate(rows), *pair) for pair in zip(*hosts, strict=True)]
    assert_equal(together, alone)
    assert not set(visited(hosts[0][:25])) & set(visited(hosts[1][:25]))  # the first epoch is 25 steps


def test_the_batch_size_does_not_change_what_becomes_of_a_record(nuclei):
    pairs = take(nuclei, 6)
    nuclei.train.batch_size = 3
    triples = take(nuclei, 4)
    flat = lambda batches: jax.tree.map(lambda *rows: np.concatenate(rows), *batches)
    assert_equal([flat(pairs)], [flat(triples)])


def test_worker_processes_do_not_change_the_batches(nuclei):
    threads = take(nuclei, 6)
    nuclei.data.workers = 2
    assert_equal(take(nuclei, 6), threads)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_fifty_batches_are_the_same_with_any_number_of_workers(nuclei, workers):
    threads = take(nuclei, 50)
    nuclei.data.workers = workers
    assert_equal(take(nuclei, 50), threads)


def test_a_data_set_smaller_than_a_batch_repeats(written_panoptic, nuclei):
    nuclei.data = written_panoptic.data
    nuclei.train.batch_size = 5
    (batch,) = take(nuclei, 1)
    assert sorted(batch.records[:2]) == sorted(batch.records[2:4]) == [0, 1]
    np.testing.assert_array_equal(batch.targets.valid.sum(axis=1), batch.records == 0)


def test_an_image_whose_objects_are_all_cropped_away_has_no_valid_row(written_instances, nuclei):
    nuclei.data = dataclasses.replace(written_instances.data, scale=(8.0, 8.0))  # the crop sees an eighth
    (batch,) = take(nuclei, 1)
    assert batch.images.shape == (2, 32, 32, 3)
    nuclei.train.batch_size = 64
    (batch,) = take(nuclei, 1)
    empty = ~batch.targets.valid.any(axis=1)
    assert 0 < empty.sum() < 64
    assert not batch.targets.masks[empty].any()
    assert not batch.targets.boxes[empty].any()


def test_masks_lie_where_the_images_show_nuclei(nuclei):
    """Nuclei glow: inside of the masks the images are brighter than on the background."""
    (batch,) = take(nuclei, 1)
    grey = batch.images.mean(axis=-1)
    for row in range(2):
        masks = unpack_mask(batch.targets.masks[row])
        nuclei_pixels = masks[batch.targets.is_thing[row]].any(axis=0)
        background = masks[batch.targets.valid[row] & ~batch.targets.is_thing[row]].any(axis=0)
        assert grey[row][nuclei_pixels].mean() > 1.5 * grey[row][background].mean()


def test_objects_beyond_the_limit_are_counted(nuclei):
    nuclei.data.max_instances = 3
    nuclei.train.batch_size = 20
    nuclei.data.scale = (1.0, 1.0)  # nothing is cropped away, and panoptic segments stay anyway
    (batch,) = take(nuclei, 1)
    dataset = open_dataset(nuclei.data, "train")
    objects = np.array([len(dataset.panoptic_records(record)) for record in batch.records])
    np.testing.assert_array_equal(batch.dropped, np.maximum(objects - 3, 0))


def test_hosts_that_do_not_divide_the_batch_are_an_error(nuclei):
    with pytest.raises(ValueError, match=r"config\.train\.batch_size = 2: give a multiple of the 3 hosts"):
        take(nuclei, 1, process_index=0, process_count=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_while_reading_reaches_the_caller_with_its_words(written_panoptic, nuclei, workers):
    nuclei.data = dataclasses.replace(written_panoptic.data, workers=workers)
    (written_panoptic.root / "images" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"images/2\.png: no such image. Restore it"):
        take(nuclei, 1)


@pytest.mark.parametrize("size", [(32, 32), (256, 256)])
def test_a_process_that_is_killed_ends_the_iteration(nuclei, size):
    """Samples of 256 x 256 do not fit into a pipe: the process is sending one whenever it is killed."""
    nuclei.data.workers, nuclei.data.image_size = 1, size
    others = set(multiprocessing.active_children())
    with train_batches(open_dataset(nuclei.data, "train"), nuclei, 0) as batches:
        next(batches)
        (process,) = set(multiprocessing.active_children()) - others
        time.sleep(1)
        process.kill()
        with pytest.raises(ChildProcessError, match="a loader process was ended from outside"):
            list(itertools.islice(batches, 100))


def test_processes_start_without_parsed_flags(nuclei):
    flags.FLAGS.unparse_flags()
    try:
        nuclei.data.workers = 1
        assert len(take(nuclei, 1)) == 1
    finally:
        flags.FLAGS.mark_as_parsed()


def test_a_closed_iterator_gives_nothing_more(nuclei):
    batches = train_batches(open_dataset(nuclei.data, "train"), nuclei, 0)
    next(batches)
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_sees_every_image_once_in_batches_of_one_canvas(coco_panoptic, nuclei, workers):
    nuclei.data = dataclasses.replace(coco_panoptic, eval_short_side=60, eval_long_side=90, workers=workers)
    dataset = open_dataset(nuclei.data, "val")
    with eval_batches(dataset, nuclei, 2) as batches:
        batches = list(batches)
    assert [batch.images.shape for batch in batches] == [(2, 64, 96, 3), (2, 64, 96, 3), (2, 96, 64, 3)]
    assert [batch.valid.tolist() for batch in batches] == [[True, True], [True, False], [True, False]]
    rows = [(batch, row) for batch in batches for row in range(2) if batch.valid[row]]
    assert sorted(int(batch.records[row]) for batch, row in rows) == [0, 1, 2, 3]
    for batch, row in rows:
        record = int(batch.records[row])
        image, size, extent = prepare_image(dataset.image(record), nuclei.data)
        np.testing.assert_array_equal(batch.images[row], image)
        np.testing.assert_array_equal(batch.sizes[row], size)
        np.testing.assert_array_equal(batch.extents[row], extent)
        np.testing.assert_array_equal(batch.original_sizes[row], dataset.size(record))


def test_filler_rows_are_black_and_cover_their_canvas(coco_panoptic, nuclei):
    nuclei.data = dataclasses.replace(coco_panoptic, eval_short_side=60, eval_long_side=90)
    with eval_batches(open_dataset(nuclei.data, "val"), nuclei, 4) as batches:
        batch = next(batches)
    np.testing.assert_array_equal(batch.valid, [True, True, True, False])
    assert not batch.images[3].any()
    np.testing.assert_array_equal(batch.sizes[3], [64, 96])
    np.testing.assert_array_equal(batch.extents[3], [64, 96])


def test_exact_canvases_group_images_of_equal_size(coco_panoptic, nuclei):
    nuclei.data = dataclasses.replace(coco_panoptic, eval_short_side=60, eval_long_side=90, eval_canvas="exact")
    dataset = open_dataset(nuclei.data, "val")
    with eval_batches(dataset, nuclei, 1) as batches:
        batches = list(batches)
    np.testing.assert_array_equal(np.sort(visited(batches)), np.arange(4))
    for batch in batches:
        assert batch.valid.all()
        assert batch.extents is None
        assert all(0 <= side - seen < 32 for side, seen in zip(batch.images.shape[1:3], batch.sizes[0], strict=True))


def test_square_evaluation_has_one_canvas(nuclei):
    with eval_batches(open_dataset(nuclei.data, "val"), nuclei, 10) as batches:
        batches = list(batches)
    assert [batch.images.shape for batch in batches] == [(10, 64, 64, 3)] * 3
    np.testing.assert_array_equal(np.concatenate([batch.valid for batch in batches]), np.arange(30) < 25)
