"""Post-processing against tensors of the official implementation, the same in NumPy, and cases worked by hand."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from maskdino_jax.config import Config, InferenceConfig, ModelConfig
from maskdino_jax.inference.frame import Frame
from maskdino_jax.inference.postprocess import Postprocessor
from maskdino_jax.inference.results import PanopticSegment
from maskdino_jax.structures import EvalBatch
from tests.inference import reference_postprocess as reference
from tests.inference.scenes import NEVER, SURE, catalog_of, outputs_of, random_outputs, same_size, segments_of

ALL = ("instance", "panoptic", "semantic")


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "unit" / "postprocess.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def official(recorded):
    """Post-process the recorded predictions."""
    classes = recorded["infer/mask_cls"].shape[1]
    return functools.partial(
        segments_of,
        recorded["infer/mask_cls"],
        recorded["infer/mask_pred"],
        same_size(18, 22),
        np.arange(classes) < recorded["infer/num_things"],
        boxes=recorded["infer/boxes_cxcywh"],
    )


# --- the official results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("things_only", [False, True])
def test_instances_match_the_official_ones(recorded, official, things_only):
    name = f"infer_instance_panoptic{int(things_only)}_focus0"
    tasks = ("instance", "panoptic") if things_only else ("instance",)
    found = official(tasks=tasks, detections_per_image=15).instances
    order = np.argsort(-recorded[f"{name}/scores"], kind="stable")  # the recorded order is that of torch.topk
    np.testing.assert_allclose(found.scores, recorded[f"{name}/scores"][order], rtol=1e-5)
    np.testing.assert_array_equal(found.labels, recorded[f"{name}/classes"][order])
    np.testing.assert_array_equal(found.masks, recorded[f"{name}/masks"][order])
    np.testing.assert_allclose(found.boxes, recorded[f"{name}/boxes"][order], atol=1e-4)


@pytest.mark.parametrize("temperature", ["T", "noT"])
@pytest.mark.parametrize("thresholds", [(0.25, 0.8), (0.25, 0.3), (0.0, 0.0), (0.99, 0.8)])
def test_panoptic_matches_the_official_map(recorded, official, temperature, thresholds):
    found = official(
        tasks=("panoptic",),
        object_threshold=thresholds[0],
        overlap_threshold=thresholds[1],
        temperature=0.06 if temperature == "T" else 0,
    ).panoptic
    name = f"infer_panoptic_{temperature}_th{thresholds[0]}_ov{thresholds[1]}"
    np.testing.assert_array_equal(found.ids, recorded[f"{name}/seg"])
    info = [(segment.id, segment.label, int(segment.is_thing)) for segment in found.segments]
    assert info == [tuple(row) for row in recorded[f"{name}/info"].tolist()]
    assert [segment.area for segment in found.segments] == [np.sum(found.ids == s.id) for s in found.segments]


@pytest.mark.parametrize("temperature", ["T", "noT"])
def test_semantic_matches_the_official_map(recorded, official, temperature):
    found = official(tasks=("semantic",), temperature=0.06 if temperature == "T" else 0).semantic
    np.testing.assert_array_equal(found, recorded[f"infer_semantic_{temperature}/output"].argmax(axis=0))


def test_semantic_with_a_no_object_column_matches_the_official_map(recorded):
    found = segments_of(
        recorded["infer/mask_cls"],
        recorded["infer/mask_pred"],
        same_size(18, 22),
        [True] * 9,
        class_scores="softmax",
        tasks=("semantic",),
    )
    np.testing.assert_array_equal(found.semantic, recorded["infer_semantic_ce/output"].argmax(axis=0))


@pytest.mark.shared
@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("model", ["instance_r50", "panoptic_r50"])
def test_instances_match_the_official_model_on_padded_images_of_another_size(shared, model, image):
    """The recording keeps every twentieth mask; boxes and classes are checked for all, masks where they are known."""
    with np.load(shared / "golden" / model / "eval_outputs.npz") as outputs:
        logits, boxes, known = (outputs[f"out/{name}9"][image] for name in ("logits", "boxes", "masks"))
        size, original = outputs[f"input/image{image}"].shape[1:], tuple(outputs["input/out_size"][image].tolist())
    with np.load(shared / "golden" / model / "eval_post.npz") as post:
        post = {
            name: post[f"post{image}/instances/{name}"] for name in ("query", "classes", "boxes", "scores", "masks")
        }
    masks = np.zeros((300, *known.shape[1:]), np.float32)
    masks[::20] = known
    frame = Frame(size, original, (4 * known.shape[1], 4 * known.shape[2]))
    classes = logits.shape[1]
    tasks = ("instance", "panoptic") if model == "panoptic_r50" else ("instance",)
    found = segments_of(logits, masks, frame, np.arange(classes) < 80, boxes=boxes, tasks=tasks).instances

    place = {pair: row for row, pair in enumerate(zip(found.queries.tolist(), found.labels.tolist(), strict=True))}
    pairs = list(zip(post["query"].tolist(), post["classes"].tolist(), strict=True))
    assert sorted(place) == sorted(pairs)
    rows = np.array([place[pair] for pair in pairs])
    np.testing.assert_allclose(found.boxes[rows], post["boxes"], atol=1e-3)

    stored = post["query"] % 20 == 0
    assert stored.any()
    np.testing.assert_allclose(found.scores[rows[stored]], post["scores"][stored], rtol=1e-4)
    expected = np.unpackbits(post["masks"][stored], axis=-1)[..., : original[1]].astype(bool)
    assert np.sum(found.masks[rows[stored]] != expected) <= 6  # float32 and float64 differ as much


# --- the same in NumPy -----------------------------------------------------------------------------------------------

FRAMES = {
    "photograph": Frame((60, 83), (75, 121), (64, 96)),
    "tiny original": Frame((64, 96), (2, 3), (64, 96)),
    "original larger than the canvas": Frame((60, 96), (700, 1030), (64, 96)),  # its masks are enlarged one by one
    "much of the canvas is padding": Frame((40, 33), (47, 33), (64, 64)),
}
IS_THING = np.array([True, True, False])
CHOICES = {"all kept": 0.0, "some kept": 0.25, "nothing kept": 1.0}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_every_task_equals_the_definition_in_numpy(frame):
    logits, boxes, masks = random_outputs(3, 20, 3, (16, 24))
    found = segments_of(logits, masks, frame, IS_THING, boxes=boxes, tasks=ALL, detections_per_image=30)
    expected = reference.instances(logits, boxes, masks, frame, top=30, is_thing=IS_THING)
    np.testing.assert_array_equal(found.instances.queries, expected.queries)
    np.testing.assert_array_equal(found.instances.labels, expected.labels)
    np.testing.assert_allclose(found.instances.scores, expected.scores, rtol=1e-5)
    np.testing.assert_allclose(found.instances.boxes, expected.boxes, rtol=1e-5, atol=1e-4)
    assert np.mean(found.instances.masks != expected.masks) < 1e-5
    thresholds = {"object_threshold": 0.25, "overlap_threshold": 0.8, "temperature": 0.06}
    panoptic = reference.panoptic(logits, masks, frame, IS_THING, **thresholds)
    assert np.mean(found.panoptic.ids != panoptic.ids) < 1e-5
    semantic = reference.semantic(logits, masks, frame, temperature=0.06)
    assert np.mean(found.semantic != semantic) < 1e-5


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("threshold", CHOICES.values(), ids=CHOICES.keys())
def test_panoptic_equals_the_definition_whatever_is_kept(threshold, overlap):
    frame = FRAMES["photograph"]
    logits, _, masks = random_outputs(4, 20, 3, (16, 24))
    options = {"object_threshold": threshold, "overlap_threshold": overlap, "temperature": 0.06}
    found = segments_of(logits, masks, frame, IS_THING, tasks=("panoptic",), **options).panoptic
    expected = reference.panoptic(logits, masks, frame, IS_THING, **options)
    assert np.mean(found.ids != expected.ids) < 1e-4
    strip = lambda segments: [(part.id, part.label, part.is_thing) for part in segments]
    assert strip(found.segments) == strip(expected.segments)
    assert (len(found.segments) == 0) == (threshold == 1)


def test_queries_that_are_all_alike_are_chosen_and_ranked_in_their_order():
    logits, _, masks = random_outputs(5, 12, 3, (16, 24))
    logits, masks = np.full_like(logits, 1.0), np.repeat(masks[:1], 12, axis=0)
    frame = FRAMES["photograph"]
    found = segments_of(logits, masks, frame, IS_THING, tasks=ALL, detections_per_image=7, overlap_threshold=0)
    assert found.instances.queries.tolist() == [0, 0, 1, 1, 2]
    assert found.instances.labels.tolist() == [0, 1, 0, 1, 0]
    assert len(found.panoptic.segments) == 1, "the first query owns every pixel"
    assert not found.semantic.any(), "of equal classes the first one"


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_semantic_with_a_no_object_column_adds_up_on_the_canvas(frame):
    logits, _, masks = random_outputs(6, 10, 4, (16, 24))
    found = segments_of(logits, masks, frame, IS_THING, class_scores="softmax", tasks=("semantic",)).semantic
    assert np.mean(found != reference.semantic_on_canvas(logits, masks, frame)) < 1e-5


# --- laws ------------------------------------------------------------------------------------------------------------


def test_results_depend_on_the_extent_and_not_on_the_canvas_around_it():
    frame = FRAMES["photograph"]
    logits, boxes, masks = random_outputs(7, 20, 3, (16, 24))
    around = np.full((20, 40, 32), np.nan, np.float32)
    around[:, :16, :24] = masks
    exact, bucketed = (segments_of(logits, values, frame, IS_THING, boxes=boxes) for values in (masks, around))
    np.testing.assert_array_equal(exact.instances.bits, bucketed.instances.bits)
    np.testing.assert_array_equal(exact.instances.scores, bucketed.instances.scores)
    np.testing.assert_array_equal(exact.panoptic.ids, bucketed.panoptic.ids)
    np.testing.assert_array_equal(exact.semantic, bucketed.semantic)
    softmax = {"class_scores": "softmax", "tasks": ("semantic",)}
    exact, bucketed = (segments_of(logits, values, frame, IS_THING[:2], **softmax) for values in (masks, around))
    np.testing.assert_array_equal(exact.semantic, bucketed.semantic)


def batch_of(rows: list[int], sizes: tuple[int, int] = (60, 83)) -> tuple[EvalBatch, list[tuple]]:
    """A batch on a canvas of 64 x 96 with these records; record r has the r-th random outputs, -1 is filler."""
    batch = EvalBatch(
        images=np.zeros((len(rows), 64, 96, 3), np.uint8),
        sizes=np.array([sizes] * len(rows), np.int32),
        extents=None,
        original_sizes=np.array([(40 + 10 * max(row, 0), 90) for row in rows], np.int32),
        records=np.maximum(rows, 0).astype(np.int32),
        valid=np.array(rows) >= 0,
    )
    return batch, [random_outputs(10 + row, 20, 3, (16, 24)) for row in rows]


def through(rows: list[int], split: NamedSharding | None = None, tasks: tuple[str, ...] = ALL) -> list:
    batch, values = batch_of(rows)
    outputs = outputs_of(*(np.stack(arrays) for arrays in zip(*values, strict=True)))
    if split is not None:
        outputs = jax.device_put(outputs, split)
    processor = Postprocessor(catalog_of(*IS_THING), Config())
    pending = processor.begin(outputs, batch, tasks)
    return [(one, processor.finish(one)) for one in pending]


def same(one, other) -> bool:
    return (
        np.array_equal(one.instances.bits, other.instances.bits)
        and np.array_equal(one.panoptic.ids, other.panoptic.ids)
        and np.array_equal(one.semantic, other.semantic)
    )


def test_an_image_has_the_same_results_at_any_place_of_a_batch_and_filler_has_none():
    alone = {row: through([row])[0][1] for row in (0, 1)}
    assert not same(alone[0], alone[1])
    for rows in ([0, 1], [1, -1, 0]):
        together = through(rows)
        assert [pending.record for pending, _ in together] == [row for row in rows if row >= 0]
        assert all(same(segments, alone[pending.record]) for pending, segments in together)
    assert alone[0].semantic.shape == (40, 90)
    assert alone[1].panoptic.ids.shape == alone[1].instances.masks.shape[1:] == (50, 90)


def test_each_image_is_computed_on_the_device_that_holds_it():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    rows = [0, 1, 1, 0]
    spread = through(rows, NamedSharding(mesh, P("data")), ("semantic",))
    shards = spread[0][0].found["semantic"].addressable_shards
    assert [(shard.device, len(shard.data)) for shard in shards] == [(device, 2) for device in jax.devices()[:2]]
    assert [pending.record for pending, _ in spread] == rows
    for (_, one), (_, other) in zip(spread, through(rows, tasks=("semantic",)), strict=True):
        np.testing.assert_array_equal(one.semantic, other.semantic)


def test_extents_of_the_batch_replace_the_canvas():
    batch, values = batch_of([0], sizes=(30, 40))
    outputs = outputs_of(*(np.stack(arrays) for arrays in zip(*values, strict=True)))
    processor = Postprocessor(catalog_of(*IS_THING), Config())
    frames = [
        processor.begin(outputs, EvalBatch(**vars(batch) | {"extents": extents}))[0].frame
        for extents in (None, np.array([[32, 64]]))
    ]
    assert frames == [Frame((30, 40), (40, 90), (64, 96)), Frame((30, 40), (40, 90), (32, 64))]


# --- by hand ---------------------------------------------------------------------------------------------------------


def halves() -> tuple[np.ndarray, np.ndarray]:
    """Masks of the left and the right half of 4 x 4 pixels."""
    left = np.full((4, 4), NEVER, np.float32)
    left[:, :2] = SURE
    return left, left[:, ::-1]


def logits_of(*classes: int | None, of: int = 3) -> np.ndarray:
    """One row for each query: sure of its class, or of nothing."""
    rows = np.full((len(classes), of), NEVER, np.float32)
    for row, label in enumerate(classes):
        if label is not None:
            rows[row, label] = SURE
    return rows


def panoptic_of(logits: np.ndarray, masks: np.ndarray):
    return segments_of(logits, masks, same_size(*masks.shape[1:]), IS_THING, tasks=("panoptic",)).panoptic


def instances_of(logits, masks, frame, top: int, tasks: tuple[str, ...] = ("instance",), boxes=None):
    is_thing = IS_THING[: np.shape(logits)[1]]
    return segments_of(
        logits, masks, frame, is_thing, boxes=boxes, tasks=tasks, detections_per_image=top
    ).instances  # fmt: skip


def thing(number: int, label: int, area: int) -> PanopticSegment:
    return PanopticSegment(id=number, label=label, is_thing=True, score=1.0, area=area)


def test_box_of_a_padded_image_is_scaled_by_extent_over_size_and_not_clipped():
    frame = Frame(size=(16, 24), original_size=(32, 48), extent=(32, 32))
    found = instances_of(logits_of(0), np.full((1, 8, 8), SURE), frame, 1, boxes=[[0.5, 0.5, 1.0, 0.5]])
    # On the canvas the box is x 0..32, y 8..24; the image was shrunk by two, so the file sees x 0..64 of its 48 pixels.
    np.testing.assert_allclose(found.boxes, [[0, 16, 64, 48]], atol=1e-4)


def test_score_is_class_probability_times_mean_probability_inside_the_mask():
    mask = np.array([[[np.log(3), -5.0], [np.log(9), -5.0]]], np.float32)  # probabilities 3/4 and 9/10 inside
    found = instances_of([[0.0]], mask, same_size(2, 2), 1)
    np.testing.assert_allclose(found.scores, [0.5 * (0.75 + 0.9) / 2], rtol=1e-5)
    np.testing.assert_array_equal(found.masks, [[[True, False], [True, False]]])


def test_a_query_may_be_two_instances_and_an_empty_mask_scores_zero():
    logits = np.array([[2.0, 1.0], [3.0, -9.0]], np.float32)
    found = instances_of(logits, np.stack([np.full((2, 2), SURE), np.full((2, 2), NEVER)]), same_size(2, 2), 3)
    assert found.queries.tolist() == [0, 0, 1]
    assert found.labels.tolist() == [0, 1, 0]
    assert found.scores[2] == 0
    assert found.areas.tolist() == [4, 4, 0]


def test_stuff_counts_among_the_best_before_it_is_dropped():
    arguments = np.array([[1.0, 0.5, 3.0]]), np.full((1, 2, 2), SURE), same_size(2, 2)
    assert instances_of(*arguments, 2, ("instance", "panoptic")).labels.tolist() == [0]
    assert instances_of(*arguments, 1, ("instance", "panoptic")).masks.shape == (0, 2, 2)
    assert instances_of(*arguments, 1).labels.tolist() == [2], "without the panoptic task every class is an instance"


def test_segments_of_one_stuff_class_are_merged_and_things_are_not():
    masks = np.stack(halves())
    stuff = panoptic_of(logits_of(2, 2), masks)
    assert stuff.segments == (PanopticSegment(id=1, label=2, is_thing=False, score=1.0, area=16),)
    np.testing.assert_array_equal(stuff.ids, 1)
    things = panoptic_of(logits_of(1, 1), masks)
    assert things.segments == (thing(1, 1, 8), thing(2, 1, 8))
    np.testing.assert_array_equal(things.ids, [[1, 1, 2, 2]] * 4)


def test_a_query_that_wins_too_little_of_its_mask_leaves_its_pixels_unlabelled():
    found = panoptic_of(logits_of(0, 1), np.stack([halves()[0], np.full((4, 4), SURE - 18, np.float32)]))
    assert [segment.label for segment in found.segments] == [0]
    np.testing.assert_array_equal(found.ids, [[1, 1, 0, 0]] * 4)


def test_of_two_equal_queries_the_first_owns_every_pixel():
    masks = np.full((2, 4, 4), SURE)
    assert panoptic_of(logits_of(0, 0), masks).segments == (thing(1, 0, 16),)
    slightly = logits_of(0, 1)
    slightly[0, 0], slightly[1, 1] = 3, 3  # equal, and not yet saturated
    assert panoptic_of(slightly, masks).segments[0].label == 0


def test_an_object_of_one_pixel_survives_every_task():
    masks = np.full((1, 4, 4), NEVER, np.float32)
    masks[0, 1, 2] = SURE
    segments = segments_of(logits_of(0), masks, same_size(4, 4), IS_THING)
    assert np.argwhere(segments.instances.masks[0]).tolist() == [[1, 2]]
    assert segments.panoptic.segments == (thing(1, 0, 1),)
    assert segments.panoptic.ids[1, 2] == 1
    assert segments.semantic[1, 2] == 0


def test_only_the_tasks_asked_for_are_computed():
    segments = segments_of(logits_of(2), np.full((1, 4, 4), SURE), same_size(4, 4), IS_THING, tasks=("semantic",))
    assert segments.instances is None
    assert segments.panoptic is None
    np.testing.assert_array_equal(segments.semantic, np.full((4, 4), 2))


def test_a_catalog_of_another_size_than_the_logits_is_an_error():
    batch, values = batch_of([0])
    outputs = outputs_of(*(array[None] for array in values[0]))
    with pytest.raises(ValueError, match=r"3 columns .* 2 classes"):
        Postprocessor(catalog_of(True, True), Config()).begin(outputs, batch)
    softmax = Config(model=ModelConfig(class_scores="softmax"), inference=InferenceConfig(tasks=("semantic",)))
    assert len(Postprocessor(catalog_of(True, True), softmax).begin(outputs, batch)) == 1


def test_a_model_with_a_no_object_column_cannot_be_asked_for_objects():
    with pytest.raises(ValueError, match=r"Give \('semantic',\)"):
        Postprocessor(catalog_of(True), Config(model=ModelConfig(class_scores="softmax")))


def test_detections_are_the_instances_scored_by_class_alone():
    logits, boxes, masks = random_outputs(3, 12, 3, (8, 10))
    frame = Frame(size=(30, 40), original_size=(61, 77), extent=(32, 40))
    with_masks = instances_of(logits, masks, frame, 36, boxes=boxes)
    alone = segments_of(
        logits, None, frame, (True, True, True), boxes=boxes, tasks=("detection",), detections_per_image=36
    ).instances
    assert alone.bits is None
    np.testing.assert_allclose(alone.scores, np.sort(1 / (1 + np.exp(-logits.ravel())))[::-1], rtol=1e-5)
    pair = lambda found: np.lexsort((found.labels, found.queries))
    np.testing.assert_array_equal(alone.boxes[pair(alone)], with_masks.boxes[pair(with_masks)])


def test_detections_are_things_only():
    found = segments_of([[1.0, 0.5, 3.0]], None, same_size(4, 4), IS_THING, tasks=("detection",)).instances
    assert found.labels.tolist() == [0, 1]
