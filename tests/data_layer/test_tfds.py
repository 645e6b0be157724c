"""Data sets of TFDS in its own format, as `tests/data/tfds/make.py` had TFDS write them."""

import json
import pickle
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import Config, ConfigError, DataConfig, SplitConfig
from maskdino_jax.data import Catalog, eval_batches, open_dataset, train_batches
from maskdino_jax.data.faults import DataError
from maskdino_jax.data.tfds_dataset import TfdsDataset
from maskdino_jax.evaluation.objects import objects_of
from maskdino_jax.evaluation.regions import truth
from maskdino_jax.validation import validate

HERE = Path(__file__).parents[1] / "data"
COCO = HERE / "coco"
SCALE = 8  # the images of COCO are that many times smaller there


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    with zipfile.ZipFile(HERE / "tfds/tfds.zip") as archive:
        archive.extractall(folder)
    return folder


def config(root: Path, name: str, train: str = "train", val: str = "validation", **options) -> DataConfig:
    splits = {"train": SplitConfig(annotations=f"{name}:{train}"), "val": SplitConfig(annotations=f"{name}:{val}")}
    small = {"image_size": (64, 64), "eval_short_side": 32, "eval_long_side": 64, "workers": 0, "max_instances": 30}
    return DataConfig(root=str(root), format="tfds", **splits, **{**small, **options})


def panoptic(root: Path, **options) -> DataConfig:
    return config(root, "coco/2017_panoptic/1.1.0", **options)


def by_image(dataset: TfdsDataset) -> dict[int, int]:
    """TFDS shuffles: the record of each image id."""
    return {dataset.image_id(record): record for record in range(len(dataset))}


def official(kind: str, split: str) -> tuple[dict, dict]:
    content = json.loads((COCO / f"annotations/{kind}_{split}2017.json").read_text())
    return content, {image["id"]: image for image in content["images"]}


@pytest.mark.parametrize("split", ["train", "val"])
def test_segments_are_those_of_the_official_files(root: Path, split: str) -> None:
    dataset = open_dataset(panoptic(root), split)
    content, images = official("panoptic", split)
    entries = {entry["image_id"]: entry for entry in content["annotations"]}
    assert dataset.truths == {"panoptic", "semantic"}
    assert dataset.catalog == Catalog.named("coco_panoptic")  # ids, names, colours and order of the checkpoints
    for image_id, record in by_image(dataset).items():
        with Image.open(COCO / f"panoptic_{split}2017" / entries[image_id]["file_name"]) as png:
            small = png.resize((png.width // SCALE, png.height // SCALE), Image.Resampling.NEAREST)
        ids = np.asarray(small).astype(int) @ [1, 256, 65536]
        np.testing.assert_array_equal(dataset.panoptic_map(record), ids)
        wanted = {entry["id"]: entry["category_id"] for entry in entries[image_id]["segments_info"]}
        found = {entry["id"]: entry["category_id"] for entry in dataset.panoptic_records(record)}
        assert found == {id: wanted[id] for id in set(np.unique(ids)) - {0}}
        assert dataset.file_name(record) == images[image_id]["file_name"]
        assert dataset.size(record) == ids.shape


def test_areas_and_boxes_are_those_of_the_pixels(root: Path) -> None:
    dataset = open_dataset(panoptic(root), "train")
    for record in range(len(dataset)):
        ids = dataset.panoptic_map(record)
        for entry in dataset.panoptic_records(record):
            y, x = np.nonzero(ids == entry["id"])
            assert entry["area"] == len(y)
            np.testing.assert_allclose(
                entry["bbox"], [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1], rtol=0, atol=1e-4
            )


def test_an_example_has_all_segments_that_are_no_crowds(root: Path) -> None:
    dataset = open_dataset(panoptic(root), "train")
    record = by_image(dataset)[min(by_image(dataset))]
    info = dataset.panoptic_records(record)
    crowds = [entry["id"] for entry in info if entry["iscrowd"]]
    example = dataset[record]
    assert len(crowds) == 1  # the fixture marks the second segment of the first image
    assert example.objects.ids == tuple(entry["id"] for entry in info if entry["id"] not in crowds)
    names = [dataset.catalog.names[label] for label in example.labels]
    ids = {entry.name: entry.id for entry in dataset.catalog.categories}
    assert [ids[name] for name in names] == [entry["category_id"] for entry in info if not entry["iscrowd"]]
    np.testing.assert_array_equal(example.is_thing, dataset.catalog.is_thing[example.labels])
    assert truth(dataset, record).crowd.sum() == 1


def test_pixels_are_those_that_tfds_decodes(root: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.builder_from_directory(root / "coco/2017_panoptic/1.1.0").as_data_source("train")
    dataset = open_dataset(panoptic(root), "train")
    for record, wanted in enumerate(source):
        np.testing.assert_array_equal(dataset.image(record), wanted["image"])
        channels = wanted["panoptic_image"].astype(int)
        np.testing.assert_array_equal(
            dataset.panoptic_map(record), channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
        )


def test_boxes_are_those_of_the_official_files(root: Path) -> None:
    data = config(root, "coco/2017/1.1.0")
    dataset = open_dataset(data, "train", masks=False)
    content, images = official("instances", "train")
    assert dataset.truths == {"instances"}
    assert dataset.catalog == Catalog.named("coco_instances")
    found = []
    for image_id, record in by_image(dataset).items():
        height, width = dataset.size(record)
        own = [entry for entry in content["annotations"] if entry["image_id"] == image_id]
        place = sorted(by_image(dataset)).index(image_id)
        own = own[: (4, 1, 0)[place]]
        kept = [entry for n, entry in enumerate(own) if (place, n) != (0, 1)]  # that one is a crowd in the fixture
        factors = np.array([width / images[image_id]["width"], height / images[image_id]["height"]] * 2)
        example = dataset[record]
        wanted = np.array([entry["bbox"] for entry in kept]).reshape(-1, 4) * factors
        wanted[:, 2:] += wanted[:, :2]
        np.testing.assert_allclose(example.objects.corners, wanted, rtol=0, atol=1e-4)
        assert [dataset.catalog.categories[label].id for label in example.labels] == [e["category_id"] for e in kept]
        found.append(len(own))
    assert sorted(found) == [0, 1, 2]  # an image without an object is an example too
    objects = objects_of(dataset, masks=False)
    counts = sorted([sum(entry["iscrowd"] for entry in objects[id]), len(objects[id])] for id in by_image(dataset))
    assert counts == [[0, 0], [0, 1], [1, 2]]


def test_boxes_cannot_teach_masks_and_masks_are_not_wasted_on_a_model_without(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"coco/2017/1\.1\.0:train' has boxes but no masks.*config\.model\.masks=Fal"):
        open_dataset(config(root, "coco/2017/1.1.0"), "train")
    with pytest.raises(ConfigError, match=r"2017_panoptic/1\.1\.0:train' teaches masks, and config\.model\.masks dec"):
        open_dataset(panoptic(root), "train", masks=False)
    assert open_dataset(panoptic(root), "val", masks=False).truths == {"panoptic", "semantic"}


def test_scene_parse_150_has_the_objects_of_100_classes(root: Path) -> None:
    dataset = open_dataset(config(root, "scene_parse150/1.0.0", val="test"), "train")
    example = dataset[1]
    assert (len(dataset), dataset.image_id(1), dataset.file_name(1)) == (2, 1, "00000001.jpg")
    assert dataset.catalog.num_classes == 100
    assert [dataset.catalog.categories[label].name for label in example.labels] == ["bed", "flag", "flag"]
    assert [dataset.catalog.categories[label].id for label in example.labels] == [7, 149, 149]
    masks, boxes = zip(*(example.objects.raster(index) for index in range(3)), strict=True)
    assert [box.tolist() for box in boxes] == [[3, 2, 12, 10], [4, 12, 20, 20], [24, 12, 30, 15]]
    assert [int(mask.sum()) for mask in masks] == [72, 128, 18]


def test_the_truth_of_scene_parse_150_is_what_the_examples_show(root: Path) -> None:
    dataset = open_dataset(config(root, "scene_parse150/1.0.0", val="test"), "val")
    objects = objects_of(dataset, masks=True)[0]
    assert [entry["category_id"] for entry in objects] == [7, 149, 149]
    assert [entry["area"] for entry in objects] == [72, 128, 18]
    assert [entry["bbox"] for entry in objects] == [[3, 2, 9, 8], [4, 12, 16, 8], [24, 12, 6, 3]]
    two_images = open_dataset(config(root, "scene_parse150/1.0.0"), "train").instances_truth()["annotations"]
    assert [(entry["image_id"], entry["id"]) for entry in two_images] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 4),
        (1, 5),
        (1, 6),
    ]


def test_an_annotation_of_one_channel_is_a_label_image(root: Path) -> None:
    dataset = open_dataset(config(root, "label_images/1.0.0", val="test", classes="ade20k"), "train")
    classes = dataset.semantic_map(0)
    assert dataset.truths == {"semantic"}
    np.testing.assert_array_equal(classes[:12], 2)  # label 3: sky
    np.testing.assert_array_equal(classes[12:, :20], 149)
    np.testing.assert_array_equal(classes[12:, 20:], 150)  # label 0: none
    example = dataset[0]
    assert example.labels.tolist() == [2, 149]
    assert example.objects.rasters().areas.tolist() == [12 * 32, 12 * 20]


def test_labels_beyond_the_class_list_are_an_error(root: Path) -> None:
    dataset = open_dataset(config(root, "label_images/1.0.0", val="test", classes="0,3"), "train")
    with pytest.raises(ValueError, match=r"label_images/1\.0\.0:train: record 0: annotation has pixels of value 150, "):
        dataset.semantic_map(0)


def test_classes_are_found_by_name_in_whatever_order_they_come(root: Path, tmp_path: Path) -> None:
    for path in (root / "coco/2017_panoptic/1.1.0").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = tmp_path / "panoptic_objects-label.labels.txt"
    names = labels.read_text().splitlines()
    labels.write_text("\n".join(names[::-1]))
    usual = open_dataset(panoptic(root), "train")
    turned = open_dataset(config(tmp_path.parent, tmp_path.name), "train")
    ids = [entry.id for entry in Catalog.named("coco_panoptic").categories]
    mirrored = dict(zip(ids, ids[::-1], strict=True))
    mine, others = ([entry["category_id"] for entry in each.panoptic_records(0)] for each in (turned, usual))
    assert mine == [mirrored[id] for id in others]


def test_a_class_that_coco_does_not_have_is_an_error(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    folder.mkdir()
    for path in (root / "coco/2017_panoptic/1.1.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    labels = folder / "panoptic_objects-label.labels.txt"
    labels.write_text(labels.read_text().replace("hair drier", "hair dryer"))
    with pytest.raises(ValueError, match=r"coco: its class 'hair dryer' \(1 in all\) is none of .*'coco_panoptic'"):
        open_dataset(config(tmp_path, "coco"), "train")


def test_a_split_may_be_a_part(root: Path) -> None:
    whole = open_dataset(panoptic(root), "train")
    first, rest = (open_dataset(panoptic(root, train=part), "train") for part in ("train[:1]", "train[1:]"))
    ids = [dataset.image_id(record) for dataset in (first, rest) for record in range(len(dataset))]
    assert (len(first), len(rest)) == (1, 2)
    assert ids == [whole.image_id(record) for record in range(3)]


def test_batches_come_the_same_from_threads_and_from_processes(root: Path) -> None:
    images = []
    for workers in (0, 2):
        settings = Config(data=panoptic(root, workers=workers))
        settings.train.batch_size = 2
        with train_batches(open_dataset(settings.data, "train"), settings, 0) as batches:
            images.append(np.stack([next(batches).images for _ in range(3)]))
    np.testing.assert_array_equal(*images)
    assert images[0].std() > 10


def test_evaluation_sees_every_image_once(root: Path) -> None:
    settings = Config(data=panoptic(root))
    with eval_batches(open_dataset(settings.data, "val"), settings, 2) as batches:
        records = [int(n) for batch in batches for n, valid in zip(batch.records, batch.valid, strict=True) if valid]
    assert sorted(records) == [0, 1]


def test_threads_share_the_files(root: Path) -> None:
    dataset = open_dataset(panoptic(root), "train")
    wanted = [dataset.image(record).tobytes() for record in range(3)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: dataset.image(n % 3).tobytes() == wanted[n % 3], range(120)))
    assert all(found)


def test_a_data_set_travels_as_names_alone(root: Path) -> None:
    dataset = open_dataset(panoptic(root), "val")
    sent = pickle.dumps(dataset)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent).image(1), dataset.image(1))


def test_nothing_imports_tensorflow_nor_tfds_before_it_is_needed(root: Path) -> None:
    code = (
        "import sys, maskdino_jax.data as data\n"
        "from maskdino_jax.config import DataConfig, SplitConfig\n"
        "assert not any(name.startswith('tensorflow') for name in sys.modules)\n"
        f"split = SplitConfig(annotations='coco/2017_panoptic/1.1.0:train')\n"
        f"data.open_dataset(DataConfig(root={str(root)!r}, format='tfds', train=split), 'train')[0]\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[1])


def test_a_missing_package_is_named_with_the_command(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package tensorflow-datasets .* pip install maskdino-jax\[tfds\]"):
        open_dataset(panoptic(root, train="train[:2]"), "train")


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ("coco/2017_panoptic:train", r"no .*2017_panoptic/dataset_info\.json.*holds coco/2017/1\.1\.0, coco/2017_pan"),
        ("coco/2017_panoptic/1.1.0", r"give folder and split .* such as coco/2017_panoptic/1\.1\.0:train"),
        ("coco/2017_panoptic/1.1.0:test", r"train\.annotations = '.*1\.1\.0:test': Unknown split 'test'"),
    ],
)
def test_what_is_no_prepared_split_is_an_error(root: Path, annotations: str, message: str) -> None:
    data = DataConfig(root=str(root), format="tfds", train=SplitConfig(annotations=annotations))
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        open_dataset(data, "train")


def test_features_that_teach_nothing_are_an_error(root: Path, tmp_path: Path) -> None:
    for path in (root / "label_images/1.0.0").iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content.replace(b'"annotation"', b'"attention"'))
    with pytest.raises(ConfigError, match=r"has the features attention, image\. Give a data set with image and one of"):
        open_dataset(config(tmp_path.parent, tmp_path.name), "train")


def test_a_damaged_record_is_an_error_that_names_it(root: Path, tmp_path: Path) -> None:
    for path in (root / "coco/2017_panoptic/1.1.0").iterdir():
        content = path.read_bytes()
        if "-train." in path.name:
            content = content[:200] + bytes(200) + content[400:]
        (tmp_path / path.name).write_bytes(content)
    dataset = open_dataset(config(tmp_path.parent, tmp_path.name), "train")
    with pytest.raises(DataError, match=r":train: record 0 cannot be read \(Corrupted.*prepare the data anew"):
        dataset.image(0)


def test_parts_are_cut_by_tfds(root: Path) -> None:
    data = panoptic(root)
    data.train.part = "rest"
    with pytest.raises(ConfigError, match=r"config\.data\.train\.part = 'rest': give all; TFDS cuts splits by :train"):
        open_dataset(data, "train")


def test_boxes_of_tfds_are_a_valid_choice_for_a_model_without_masks(root: Path) -> None:
    settings = Config(data=config(root, "coco/2017/1.1.0"), best_metric="bbox/AP")
    settings.model.masks = False
    settings.model.denoising.mode = "boxes"
    settings.inference.tasks = ("detection",)
    validate(settings)
