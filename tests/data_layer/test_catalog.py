"""Order, look-up and JSON round trip of the classes."""

import json
import re

import numpy as np
import pytest

from maskdino_jax.data import Catalog, open_dataset
from maskdino_jax.data.catalog import LabelValues, label_values


def test_things_come_first_then_stuff_each_by_ascending_id():
    catalog = Catalog.from_coco(
        [
            {"id": 30, "name": "sky", "isthing": 0},
            {"id": 20, "name": "dog", "isthing": 1},
            {"id": 10, "name": "road", "isthing": 0},
            {"id": 25, "name": "cat", "isthing": 1},
        ]
    )
    assert catalog.names == ("dog", "cat", "road", "sky")
    np.testing.assert_array_equal(catalog.is_thing, [True, True, False, False])
    assert [catalog.index(id) for id in (20, 25, 10, 30)] == [0, 1, 2, 3]


def test_coco_has_80_things_and_53_stuff_classes_in_the_order_of_the_checkpoints(coco_panoptic):
    catalog = open_dataset(coco_panoptic, "val").catalog
    assert catalog.num_classes == 133
    assert catalog.is_thing.tolist() == [True] * 80 + [False] * 53
    assert [(catalog.index(id), catalog.names[catalog.index(id)]) for id in (1, 13, 90, 92, 200)] == [
        (0, "person"),
        (11, "stop sign"),
        (79, "toothbrush"),
        (80, "banner"),
        (132, "rug-merged"),
    ]


def test_instance_categories_are_all_things():
    catalog = Catalog.from_coco([{"id": 2, "name": "b"}, {"id": 1, "name": "a"}])
    assert catalog.names == ("a", "b")
    assert catalog.is_thing.all()


def test_colours_are_the_files_or_differ_from_class_to_class():
    catalog = Catalog.from_coco(
        [{"id": 0, "name": "own", "color": [1, 2, 3]}] + [{"id": k, "name": str(k)} for k in range(1, 80)]
    )
    assert catalog.categories[0].color == (1, 2, 3)
    assert len({category.color for category in catalog.categories}) == 80
    assert all(0 <= channel <= 255 for category in catalog.categories for channel in category.color)


def test_a_catalog_survives_json():
    catalog = Catalog.from_coco([{"id": 4, "name": "sky", "isthing": 0}, {"id": 2, "name": "dog", "isthing": 1}])
    assert Catalog.from_dict(json.loads(json.dumps(catalog.to_dict()))) == catalog


def test_an_unknown_id_is_an_error_that_lists_the_known_ones():
    catalog = Catalog.from_coco([{"id": 4, "name": "a"}, {"id": 2, "name": "b"}])
    with pytest.raises(ValueError, match=r"category id 3 is unknown: the data set has 2, 4"):
        catalog.index(3)


def test_two_categories_with_one_id_are_an_error():
    with pytest.raises(ValueError, match="category id 4 occurs twice"):
        Catalog.from_coco([{"id": 4, "name": "a"}, {"id": 4, "name": "b"}])


@pytest.mark.parametrize("name", ["coco_panoptic", "coco_instances"])
def test_the_named_list_of_coco_is_that_of_its_annotations(name, request):
    data = request.getfixturevalue(name)
    read, named = open_dataset(data, "val").catalog, Catalog.named(name)
    facts = lambda catalog: [(entry.id, entry.name, entry.is_thing) for entry in catalog.categories]
    assert facts(named) == facts(read)


def test_instances_have_the_names_and_colours_of_the_panoptic_things():
    assert Catalog.named("coco_instances").categories == Catalog.named("coco_panoptic").categories[:80]


def test_ade20k_counts_its_labels_from_one():
    catalog = Catalog.named("ade20k")
    assert [entry.id for entry in catalog.categories] == list(range(1, 151))
    assert label_values("ade20k") == LabelValues(tuple(range(1, 151)), unlabelled=0)
    assert catalog.is_thing.sum() == 100
    assert [catalog.names[place] for place in (0, 6, 7, 12, 129, 149)] == [
        "wall",
        "road",
        "bed",
        "person",
        "dishwasher",
        "flag",
    ]


def test_cityscapes_has_label_ids_and_trains_on_others():
    catalog = Catalog.named("cityscapes")
    assert label_values("cityscapes") == LabelValues(tuple(range(19)), unlabelled=255)
    assert [entry.id for entry in catalog.categories] == [
        *(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23),
        *(24, 25, 26, 27, 28, 31, 32, 33),
    ]
    assert catalog.is_thing.tolist() == [False] * 11 + [True] * 8
    assert (catalog.names[0], catalog.categories[0].color) == ("road", (128, 64, 128))
    assert (catalog.names[18], catalog.categories[18].color) == ("bicycle", (119, 11, 32))


@pytest.mark.parametrize("name", ["coco_instances", "coco_panoptic", "ade20k", "cityscapes"])
def test_classes_of_a_list_differ_in_id_name_and_colour(name):
    categories = Catalog.named(name).categories
    for field in ("id", "name", "color"):
        assert len({getattr(entry, field) for entry in categories}) == len(categories)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("coco_panoptic", "coco/annotations/panoptic_coco_categories.json"),
        ("ade20k", "ADEChallengeData2016/ade20k_150_categories.json"),
    ],
)
def test_things_and_colours_are_the_published_ones(shared, name, path):
    published = {entry["id"]: entry for entry in json.loads((shared / "data" / path).read_text())}
    found = {entry.id: (entry.is_thing, list(entry.color)) for entry in Catalog.named(name).categories}
    assert found == {id: (bool(entry["isthing"]), entry["color"]) for id, entry in published.items()}


def test_a_named_list_gives_the_data_set_its_colours(coco_instances):
    coco_instances.classes = "coco_instances"
    assert open_dataset(coco_instances, "val").catalog == Catalog.named("coco_instances")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "dog"}], "category 1 is 'dog', but 'person' in config.data.classes = 'coco_instances'."),
        ([{"id": 1, "name": "person"}], "category 2 is missing, but 'bicycle' in config.data.classes"),
        ([{"id": 0, "name": "thing"}], "category 0 is 'thing', but missing in config.data.classes"),
    ],
)
def test_other_classes_than_the_named_ones_are_an_error(written_instances, categories, message):
    written_instances.tables |= {"categories": categories, "annotations": []}
    written_instances.data.classes = "coco_instances"
    with pytest.raises(ValueError, match=re.escape(f"{written_instances.json}: {message}")):
        open_dataset(written_instances.save(), "val")
