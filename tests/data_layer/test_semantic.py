"""Images with label PNG: which file belongs to which, what a value means, and what training makes of it."""

import dataclasses
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import Config, DataConfig, SplitConfig
from maskdino_jax.data import Catalog, eval_batches, open_dataset, train_batches
from maskdino_jax.data.masks import unpack_mask
from maskdino_jax.evaluation.mean_iou import MeanIoU

# Labels of ADE20K: 0 unlabelled, 1 wall, 4 floor, 8 bed (a thing), 150 flag (a thing).
LABELS = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [1, 8, 8, 1, 150, 1],
        [4, 8, 8, 0, 0, 0],
        [4, 4, 4, 4, 4, 4],
    ],
    np.uint8,
)


@pytest.fixture
def ade(tmp_path):
    """Two images, one in a folder of its own; as training crop the whole image."""
    for folder in ("images/attic", "labels/attic"):
        (tmp_path / folder).mkdir(parents=True)
    pixels = np.repeat(LABELS[..., None], 3, axis=2)
    for name, labels in (("cellar", LABELS), ("attic/room", LABELS[::-1])):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{name}.png")
    split = SplitConfig(images="images", semantic="labels")
    return DataConfig(
        root=str(tmp_path),
        format="semantic",
        classes="ade20k",
        train=split,
        val=dataclasses.replace(split),
        augmentation="short_edge",
        short_sides=(4,),
        image_size=(32, 32),
        flip=0.0,
        workers=0,
        eval_short_side=8,
        eval_long_side=40,
    )


def write_cityscapes(root):
    """One image as cityscapesScripts lays it out, with the files that are not for training."""
    for folder in ("leftImg8bit/val/ulm", "gtFine/val/ulm"):
        (root / folder).mkdir(parents=True)
    labels = np.array([[0, 18, 255], [11, 11, 0]], np.uint8)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(root / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png")
    stem = root / "gtFine/val/ulm/ulm_000000_000019_gtFine"
    Image.fromarray(labels).save(f"{stem}_labelTrainIds.png")
    Image.fromarray(labels[::-1]).save(f"{stem}_labelIds.png")
    Image.fromarray(np.zeros((2, 3, 4), np.uint8)).save(f"{stem}_color.png")
    split = SplitConfig(images="leftImg8bit/val", semantic="gtFine/val")
    return DataConfig(root=str(root), format="semantic", classes="cityscapes", val=split)


def test_images_are_found_in_folders_below_and_named_by_their_path(ade):
    dataset = open_dataset(ade, "train")
    assert [dataset.image_id(index) for index in range(len(dataset))] == ["attic/room", "cellar"]
    assert dataset.file_name(0) == "attic/room.jpg"
    assert dataset.size(0) == (4, 6)
    assert dataset.image(0).shape == (4, 6, 3)
    assert dataset.catalog == Catalog.named("ade20k")


def test_ade20k_classes_are_the_labels_less_one_and_0_is_none(ade):
    dataset = open_dataset(ade, "val")
    np.testing.assert_array_equal(dataset.semantic_map(1), np.where(LABELS == 0, 150, LABELS.astype(int) - 1))
    np.testing.assert_array_equal(dataset.semantic_map(0), dataset.semantic_map(1)[::-1])


def test_cityscapes_pairs_each_image_with_its_train_ids(tmp_path):
    dataset = open_dataset(write_cityscapes(tmp_path), "val")
    assert dataset.image_id(0) == "ulm/ulm_000000_000019_leftImg8bit"
    np.testing.assert_array_equal(dataset.semantic_map(0), [[0, 18, 19], [11, 11, 0]])
    assert [dataset.catalog.names[label] for label in dataset[0].labels] == ["road", "person", "bicycle"]


def test_objects_of_cityscapes_have_their_numbers_if_all_images_do(tmp_path):
    data = write_cityscapes(tmp_path)
    assert open_dataset(data, "val").truths == {"semantic"}
    numbers = np.array([[7, 33001, 0], [24000, 24001, 7]], np.uint16)
    Image.fromarray(numbers).save(tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_instanceIds.png")
    dataset = open_dataset(data, "val")
    assert dataset.truths == {"semantic", "objects"}
    np.testing.assert_array_equal(dataset.object_numbers(0), numbers)
    found = np.array([[0, 18, 0], [11, 12, 0]])
    metrics = MeanIoU(dataset)
    metrics.add(0, found)
    scores = metrics.compute()
    assert scores["sem_seg/iIoU"] == pytest.approx((1 + 1 / 2 + 0) / 3), "bicycle, persons, no rider"
    assert scores["sem_seg/iIoU_sup"] == 1
    second = "gtFine/val/ulm/ulm_000001_000019_gtFine_labelTrainIds.png"
    shutil.copy(tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelTrainIds.png", tmp_path / second)
    image = "leftImg8bit/val/ulm/ulm_00000{}_000019_leftImg8bit.png"
    shutil.copy(tmp_path / image.format(0), tmp_path / image.format(1))
    assert open_dataset(data, "val").truths == {"semantic"}, "the second image has no such file"


# Of cityscapesScripts: the train id of each label id.
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
TRAIN_IDS |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def test_without_train_ids_the_label_ids_of_cityscapes_say_the_same(tmp_path):
    data = write_cityscapes(tmp_path)
    stem = tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine"
    Image.fromarray(np.arange(34, dtype=np.uint8).reshape(2, 17)).save(f"{stem}_labelIds.png")
    made = np.array([TRAIN_IDS.get(value, 255) for value in range(34)], np.uint8).reshape(2, 17)
    Image.fromarray(made).save(f"{stem}_labelTrainIds.png")
    dataset = open_dataset(data, "val")
    assert dataset.pairs[0][1].endswith("labelTrainIds.png")
    expected = dataset.semantic_map(0)
    (tmp_path / f"{stem}_labelTrainIds.png").unlink()
    without = open_dataset(data, "val")
    assert without.pairs[0][1].endswith("labelIds.png")
    np.testing.assert_array_equal(without.semantic_map(0), expected)
    np.testing.assert_array_equal(without.semantic_map(0), np.where(made == 255, 19, made))
    Image.fromarray(np.full((2, 3), 34, np.uint8)).save(f"{stem}_labelIds.png")
    with pytest.raises(ValueError, match=r"labelIds\.png has pixels of value 34, which mean nothing"):
        without.semantic_map(0)


def test_train_ids_of_some_images_are_not_mixed_with_label_ids(tmp_path):
    data = write_cityscapes(tmp_path)
    more = "ulm/ulm_000000_000020"
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / f"leftImg8bit/val/{more}_leftImg8bit.png")
    with pytest.raises(ValueError, match=r"000020_leftImg8bit\.png has no labels: there is no .*labelTrainIds\.png"):
        open_dataset(data, "val")
    Image.fromarray(np.full((2, 3), 33, np.uint8)).save(tmp_path / f"gtFine/val/{more}_gtFine_labelIds.png")
    dataset = open_dataset(data, "val")
    assert [label.rpartition("_")[2] for _, label in dataset.pairs] == ["labelIds.png"] * 2
    assert (dataset.semantic_map(1) == 18).all()


def test_an_example_has_one_object_for_each_class_in_ascending_order(ade):
    example = open_dataset(ade, "train")[1]
    np.testing.assert_array_equal(example.labels, [0, 3, 7, 149])
    np.testing.assert_array_equal(example.is_thing, [False, False, True, True])
    for position, label in enumerate(example.labels):
        mask, box = example.objects.raster(position)
        np.testing.assert_array_equal(mask, label + 1 == LABELS)
        if label == 7:
            np.testing.assert_array_equal(box, [1, 1, 3, 3])
        if label == 0:
            np.testing.assert_array_equal(box, [0, 0, 6, 2])


def test_a_training_batch_has_the_classes_of_the_crop_only(ade):
    config = Config(data=ade)
    config.train.batch_size = 8
    with train_batches(open_dataset(ade, "train"), config, 0) as batches:
        whole = next(batches)
    ade.image_size = (32, 32)
    ade.short_sides = (64,)  # the crop sees the upper or lower half of 64 rows and a third of 96 columns
    with train_batches(open_dataset(ade, "train"), config, 0) as batches:
        cut = next(batches)
    np.testing.assert_array_equal(whole.targets.valid.sum(axis=1), [4] * 8)
    np.testing.assert_array_equal(whole.targets.labels[:, :4], [[0, 3, 7, 149]] * 8)
    assert not unpack_mask(whole.targets.masks)[:, :, 4:].any()  # padding belongs to no class
    assert not unpack_mask(whole.targets.masks)[:, :, :, 6:].any()
    counts = cut.targets.valid.sum(axis=1)
    assert counts.min() < 4
    for row, count in enumerate(counts):
        masks = unpack_mask(cut.targets.masks[row])
        assert masks[:count].any(axis=(1, 2)).all()
        assert masks.sum(axis=0).max() == 1
        assert (np.diff(cut.targets.labels[row, :count]) > 0).all()


def test_evaluation_resizes_as_for_other_data_sets(ade):
    with eval_batches(open_dataset(ade, "val"), Config(data=ade), 2) as batches:
        (batch,) = batches
    assert batch.images.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(batch.sizes, [[8, 12]] * 2)
    np.testing.assert_array_equal(batch.original_sizes, [[4, 6]] * 2)


def test_a_data_set_survives_pickling_and_prints_its_labels(ade):
    dataset = open_dataset(ade, "val")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy == dataset
    assert repr(copy) == f"SemanticDataset({str(dataset.annotations)!r}, 2 images)"


def test_worker_processes_read_it(ade):
    config = Config(data=ade)
    config.train.batch_size = 2
    with train_batches(open_dataset(ade, "train"), config, 0) as batches:
        threads = next(batches)
    ade.workers = 1
    with train_batches(open_dataset(ade, "train"), config, 0) as batches:
        np.testing.assert_array_equal(next(batches).images, threads.images)


def test_an_image_without_labels_is_named(ade, tmp_path):
    (tmp_path / "labels/attic/room.png").rename(tmp_path / "labels/room.png")
    message = f"{tmp_path}/images/attic/room.jpg has no labels: there is no {tmp_path}/labels/attic/room.png (1 in all)"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_dataset(ade, "train")


def test_a_folder_without_images_is_named(ade, tmp_path):
    ade.train.images = "labels/attic"
    (tmp_path / "labels/attic/room.png").unlink()
    with pytest.raises(ValueError, match=r"labels/attic has no image \(\.jpg, \.jpeg, \.png\)"):
        open_dataset(ade, "train")


def test_a_missing_folder_of_labels_names_the_option(ade):
    ade.val.semantic = ""
    with pytest.raises(FileNotFoundError, match=r"config\.data\.val\.semantic = ''"):
        open_dataset(ade, "val")


def test_values_beyond_the_class_list_are_an_error(ade, tmp_path):
    Image.fromarray(LABELS - np.uint8(1)).save(tmp_path / "labels/cellar.png")  # 255 for unlabelled
    dataset = open_dataset(ade, "train")
    with pytest.raises(ValueError, match=r"labels/cellar\.png has pixels of value 255, which mean nothing"):
        dataset.semantic_map(1)


def test_labels_of_another_size_than_the_image_are_an_error(ade, tmp_path):
    Image.fromarray(LABELS[:3]).save(tmp_path / "labels/cellar.png")
    dataset = open_dataset(ade, "train")
    with pytest.raises(ValueError, match=r"cellar\.png is 6 x 3 pixels, but its image .*cellar\.jpg is 6 x 4"):
        dataset[1]


@pytest.mark.shared
@pytest.mark.parametrize("split", ["training", "validation"])
def test_real_labels_become_those_of_the_reference(shared, split):
    """The reference subtracts one in bytes, so that unlabelled becomes 255."""
    paths = SplitConfig(images=f"images/{split}", semantic=f"annotations/{split}")
    root = shared / "data/ADEChallengeData2016"
    dataset = open_dataset(DataConfig(root=str(root), format="semantic", classes="ade20k", val=paths), "val")
    for index in range(len(dataset)):
        path = root / paths.semantic / f"{dataset.image_id(index)}.png"
        bytes_less_one = np.asarray(Image.open(path)) - np.uint8(1)
        found = dataset.semantic_map(index)
        np.testing.assert_array_equal(np.where(found == 150, 255, found), bytes_less_one)
        np.testing.assert_array_equal(dataset[index].labels, np.setdiff1d(bytes_less_one, [255]))
        assert dataset.size(index) == found.shape
