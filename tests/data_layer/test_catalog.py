"""Order, look-up and JSON round trip of the classes."""

import json

import numpy as np
import pytest

from maskdino_jax.data import Catalog, open_dataset


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
