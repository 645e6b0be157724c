"""Post-processing against tensors of the official implementation, JAX's own resize, and cases worked by hand."""

import jax
import numpy as np
import pytest

from maskdino_jax.config import InferenceConfig
from maskdino_jax.inference.postprocess import (
    Frame,
    enlarge,
    instances,
    panoptic,
    postprocess,
    resize_matrix,
    semantic,
)
from maskdino_jax.inference.results import Segment
from maskdino_jax.structures import Detections

SURE, NEVER = 20.0, -20.0  # logits whose float32 probability is 1, and nearly 0


def same_size(height: int, width: int) -> Frame:
    """A frame in which nothing is resized."""
    return Frame((height, width), (height, width), (height, width))


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "unit" / "postprocess.npz") as arrays:
        return dict(arrays)


# --- resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [(28, 36), (13, 10), (4, 5), (7, 18), (3, 20)])
def test_one_resize_matches_the_recorded_interpolation(recorded, target):
    x = recorded["resize/x"][0]
    rows, columns = (resize_matrix(source, source, source, side) for source, side in zip((7, 9), target, strict=True))
    expected = recorded[f"resize_7x9_to_{target[0]}x{target[1]}/output"][0]
    np.testing.assert_allclose(rows @ x @ columns.T, expected, atol=2e-6)


def test_crop_then_resize_matches_the_recorded_one(recorded):
    x, size, out = (recorded[f"sem_seg_postprocess/{name}"] for name in ("x", "image_size", "out_size"))
    enlarged = enlarge(x, Frame(tuple(size), tuple(out), x.shape[1:]))
    np.testing.assert_allclose(enlarged, recorded["sem_seg_postprocess/output"], atol=1e-5)


@pytest.mark.parametrize(
    ("canvas", "size", "original"),
    [
        ((64, 96), (60, 83), (47, 151)),
        ((64, 96), (64, 96), (64, 96)),
        ((128, 64), (101, 64), (400, 3)),
        ((32, 32), (1, 1), (5, 7)),
    ],
)
def test_the_composed_matrices_equal_upsample_crop_and_resize_one_after_the_other(canvas, size, original):
    masks = np.random.default_rng(0).standard_normal((3, canvas[0] // 4, canvas[1] // 4)).astype(np.float32)
    resize = lambda x, shape: jax.image.resize(x, (3, *shape), "bilinear", antialias=False)
    expected = resize(resize(masks, canvas)[:, : size[0], : size[1]], original)
    np.testing.assert_allclose(enlarge(masks, Frame(size, original, canvas)), np.asarray(expected), atol=1e-5)


def test_a_slice_of_rows_is_enlarged_to_the_same_values_as_the_whole():
    masks = np.random.default_rng(1).standard_normal((2, 50, 40)).astype(np.float32)
    frame = Frame((190, 160), (301, 77), (200, 160))
    np.testing.assert_allclose(enlarge(masks, frame, slice(37, 190)), enlarge(masks, frame)[:, 37:190], atol=1e-6)


def test_a_constant_mask_stays_constant_because_the_weights_of_each_pixel_sum_to_one():
    frame = Frame((60, 83), (211, 97), (64, 96))
    np.testing.assert_allclose(enlarge(np.full((1, 16, 24), 3.0), frame), 3.0, rtol=1e-6)


# --- the official results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("things_only", [False, True])
def test_instances_match_the_official_ones(recorded, things_only):
    name = f"infer_instance_panoptic{int(things_only)}_focus0"
    classes = recorded["infer/mask_cls"].shape[1]
    found = instances(
        recorded["infer/mask_cls"],
        recorded["infer/boxes_cxcywh"],
        recorded["infer/mask_pred"],
        same_size(18, 22),
        top=15,
        is_thing=np.arange(classes) < recorded["infer/num_things"] if things_only else None,
    )
    order = np.argsort(-recorded[f"{name}/scores"], kind="stable")  # the recorded order is that of torch.topk
    np.testing.assert_allclose(found.scores, recorded[f"{name}/scores"][order], rtol=1e-5)
    np.testing.assert_array_equal(found.labels, recorded[f"{name}/classes"][order])
    np.testing.assert_array_equal(found.masks, recorded[f"{name}/masks"][order])
    boxes = recorded["infer/boxes_cxcywh"][found.queries]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    np.testing.assert_allclose(found.boxes, corners * [22, 18, 22, 18], atol=1e-4)
    np.testing.assert_allclose(found.boxes, recorded[f"{name}/boxes"][order], atol=1e-4)


@pytest.mark.parametrize("temperature", ["T", "noT"])
@pytest.mark.parametrize("thresholds", [(0.25, 0.8), (0.25, 0.3), (0.0, 0.0), (0.99, 0.8)])
def test_panoptic_matches_the_official_map(recorded, temperature, thresholds):
    classes = recorded["infer/mask_cls"].shape[1]
    found = panoptic(
        recorded["infer/mask_cls"],
        recorded["infer/mask_pred"],
        same_size(18, 22),
        np.arange(classes) < recorded["infer/num_things"],
        object_threshold=thresholds[0],
        overlap_threshold=thresholds[1],
        temperature=0.06 if temperature == "T" else 0,
    )
    name = f"infer_panoptic_{temperature}_th{thresholds[0]}_ov{thresholds[1]}"
    np.testing.assert_array_equal(found.ids, recorded[f"{name}/seg"])
    info = [(segment.id, segment.label, int(segment.is_thing)) for segment in found.segments]
    assert info == [tuple(row) for row in recorded[f"{name}/info"].tolist()]
    assert [segment.area for segment in found.segments] == [np.sum(found.ids == s.id) for s in found.segments]


@pytest.mark.parametrize("temperature", ["T", "noT"])
def test_semantic_matches_the_official_map(recorded, temperature):
    found = semantic(
        recorded["infer/mask_cls"],
        recorded["infer/mask_pred"],
        same_size(18, 22),
        temperature=0.06 if temperature == "T" else 0,
    )
    np.testing.assert_array_equal(found, recorded[f"infer_semantic_{temperature}/output"].argmax(axis=0))


@pytest.mark.shared
@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("model", ["instance_r50", "panoptic_r50"])
def test_instances_match_the_official_model_on_padded_images_of_another_size(shared, model, image):
    """The recording keeps every twentieth mask; boxes and classes are checked for all, masks where they are known."""
    with np.load(shared / "golden" / model / "eval_outputs.npz") as outputs:
        logits, boxes, known = (outputs[f"out/{name}9"][image] for name in ("logits", "boxes", "masks"))
        size, original = outputs[f"input/image{image}"].shape[1:], tuple(outputs["input/out_size"][image])
    with np.load(shared / "golden" / model / "eval_post.npz") as post:
        post = {
            name.removeprefix(f"post{image}/"): post[name] for name in post.files if name.startswith(f"post{image}/")
        }
    masks = np.zeros((300, *known.shape[1:]), np.float32)
    masks[::20] = known
    canvas = (4 * known.shape[1], 4 * known.shape[2])
    frame = Frame(size, original, canvas)

    enlarged = enlarge(known, frame)
    np.testing.assert_allclose(enlarged.mean(axis=(1, 2)), post["mask_resized_stats"][::20, 0], atol=1e-4)
    np.testing.assert_allclose(enlarged.std(axis=(1, 2), ddof=1), post["mask_resized_stats"][::20, 1], atol=1e-4)

    is_thing = np.arange(133) < 80 if model == "panoptic_r50" else None
    found = instances(logits, boxes, masks, frame, top=100, is_thing=is_thing)
    place = {pair: row for row, pair in enumerate(zip(found.queries.tolist(), found.labels.tolist(), strict=True))}
    official = list(zip(post["instances/query"].tolist(), post["instances/classes"].tolist(), strict=True))
    assert sorted(place) == sorted(official)
    rows = np.array([place[pair] for pair in official])
    np.testing.assert_allclose(found.boxes[rows], post["instances/boxes"], atol=1e-3)

    stored = post["instances/query"] % 20 == 0
    assert stored.any()
    np.testing.assert_allclose(found.scores[rows[stored]], post["instances/scores"][stored], rtol=1e-4)
    expected = np.unpackbits(post["instances/masks"][stored], axis=-1)[..., : original[1]].astype(bool)
    assert np.sum(found.masks[rows[stored]] != expected) <= 6  # float32 and float64 differ as much


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


IS_THING = np.array([True, True, False])
THRESHOLDS = {"object_threshold": 0.25, "overlap_threshold": 0.8, "temperature": 0.06}


def test_box_of_a_padded_image_is_scaled_by_canvas_over_size_and_not_clipped():
    found = instances(
        logits_of(0),
        np.array([[0.5, 0.5, 1.0, 0.5]]),
        np.full((1, 8, 8), SURE),
        Frame(size=(16, 24), original_size=(32, 48), canvas=(32, 32)),
        top=1,
    )
    # On the canvas the box is x 0..32, y 8..24; the image was shrunk by two, so the file sees x 0..64 of its 48 pixels.
    np.testing.assert_allclose(found.boxes, [[0, 16, 64, 48]], atol=1e-4)


def test_score_is_class_probability_times_mean_probability_inside_the_mask():
    mask = np.array([[[np.log(3), -5.0], [np.log(9), -5.0]]], np.float32)  # probabilities 3/4 and 9/10 inside
    found = instances(np.array([[0.0]]), np.zeros((1, 4)), mask, same_size(2, 2), top=1)
    np.testing.assert_allclose(found.scores, [0.5 * (0.75 + 0.9) / 2], rtol=1e-5)
    np.testing.assert_array_equal(found.masks, [[[True, False], [True, False]]])


def test_a_query_may_be_two_instances_and_an_empty_mask_scores_zero():
    logits = np.array([[2.0, 1.0], [3.0, -9.0]], np.float32)
    masks = np.stack([np.full((2, 2), SURE), np.full((2, 2), NEVER)])
    found = instances(logits, np.zeros((2, 4)), masks, same_size(2, 2), top=3)
    assert found.queries.tolist() == [0, 0, 1]
    assert found.labels.tolist() == [0, 1, 0]
    assert found.scores[2] == 0
    assert not found.masks[2].any()


def test_stuff_counts_among_the_best_before_it_is_dropped():
    logits = np.array([[1.0, 0.5, 3.0]], np.float32)
    arguments = (logits, np.zeros((1, 4)), np.full((1, 2, 2), SURE), same_size(2, 2))
    assert instances(*arguments, top=2, is_thing=IS_THING).labels.tolist() == [0]
    assert instances(*arguments, top=1, is_thing=IS_THING).masks.shape == (0, 2, 2)


def test_above_keeps_instances_from_a_score_on():
    found = instances(
        np.array([[2.0], [0.0]]), np.zeros((2, 4)), np.full((2, 2, 2), SURE), same_size(2, 2), top=2
    ).above(0.6)
    assert found.queries.tolist() == [0]
    assert found.masks.shape == (1, 2, 2)


def test_segments_of_one_stuff_class_are_merged_and_things_are_not():
    masks = np.stack(halves())
    stuff = panoptic(logits_of(2, 2), masks, same_size(4, 4), IS_THING, **THRESHOLDS)
    assert stuff.segments == (Segment(1, 2, False, 1.0, 16),)
    np.testing.assert_array_equal(stuff.ids, 1)
    things = panoptic(logits_of(1, 1), masks, same_size(4, 4), IS_THING, **THRESHOLDS)
    assert things.segments == (Segment(1, 1, True, 1.0, 8), Segment(2, 1, True, 1.0, 8))
    np.testing.assert_array_equal(things.ids, [[1, 1, 2, 2]] * 4)


def test_a_query_that_wins_too_little_of_its_mask_leaves_its_pixels_unlabelled():
    whole = np.full((4, 4), SURE - 18, np.float32)
    found = panoptic(logits_of(0, 1), np.stack([halves()[0], whole]), same_size(4, 4), IS_THING, **THRESHOLDS)
    assert [segment.label for segment in found.segments] == [0]
    np.testing.assert_array_equal(found.ids, [[1, 1, 0, 0]] * 4)


def test_of_two_equal_queries_the_first_owns_every_pixel():
    found = panoptic(logits_of(0, 0), np.full((2, 4, 4), SURE), same_size(4, 4), IS_THING, **THRESHOLDS)
    assert found.segments == (Segment(1, 0, True, 1.0, 16),)
    slightly = logits_of(0, 1)
    slightly[0, 0], slightly[1, 1] = 3, 3  # equal, and not yet saturated
    assert panoptic(slightly, np.full((2, 4, 4), SURE), same_size(4, 4), IS_THING, **THRESHOLDS).segments[0].label == 0


def test_nothing_confident_gives_an_empty_map_of_the_original_size():
    found = panoptic(
        logits_of(None), np.full((1, 4, 4), SURE), Frame((16, 16), (5, 7), (16, 16)), IS_THING, **THRESHOLDS
    )
    assert found.segments == ()
    np.testing.assert_array_equal(found.ids, np.zeros((5, 7)))


def test_an_object_of_one_pixel_survives_every_task():
    masks = np.full((1, 4, 4), NEVER, np.float32)
    masks[0, 1, 2] = SURE
    segments = postprocess(
        Detections(logits=logits_of(0), boxes=np.zeros((1, 4)), masks=masks),
        (4, 4), (4, 4), (4, 4), IS_THING, InferenceConfig(),
    )  # fmt: skip
    assert np.argwhere(segments.instances.masks[0]).tolist() == [[1, 2]]
    assert segments.panoptic.segments == (Segment(1, 0, True, 1.0, 1),)
    assert segments.panoptic.ids[1, 2] == 1
    assert segments.semantic[1, 2] == 0


def test_only_the_tasks_asked_for_are_computed():
    detections = Detections(logits=logits_of(2), boxes=np.zeros((1, 4)), masks=np.full((1, 4, 4), SURE))
    arguments = (detections, (16, 16), (9, 9), (16, 16), IS_THING)
    alone = postprocess(*arguments, InferenceConfig(tasks=("instance",), detections_per_image=1))
    assert alone.panoptic is None
    assert alone.semantic is None
    assert alone.instances.labels.tolist() == [2], "without the panoptic task every class is an instance"
    beside = postprocess(*arguments, InferenceConfig(tasks=("instance", "panoptic"), detections_per_image=1))
    assert beside.instances.labels.tolist() == []


def test_results_do_not_depend_on_how_the_work_is_cut_into_chunks(monkeypatch):
    rng = np.random.default_rng(3)
    detections = Detections(
        logits=rng.standard_normal((12, 3)), boxes=rng.random((12, 4)), masks=4 * rng.standard_normal((12, 16, 24))
    )
    run = lambda: postprocess(detections, (60, 90), (75, 101), (64, 96), IS_THING, InferenceConfig())
    whole = run()
    monkeypatch.setattr("maskdino_jax.inference.postprocess._CHUNK", 3 * 75 * 101)
    parts = run()
    np.testing.assert_array_equal(whole.instances.masks, parts.instances.masks)
    np.testing.assert_array_equal(whole.panoptic.ids, parts.panoptic.ids)
    np.testing.assert_array_equal(whole.semantic, parts.semantic)


def test_a_catalog_of_another_size_than_the_logits_is_an_error():
    detections = Detections(logits=logits_of(0), boxes=np.zeros((1, 4)), masks=np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match="3 classes but the catalog has 2"):
        postprocess(detections, (4, 4), (4, 4), (4, 4), IS_THING[:2], InferenceConfig())
