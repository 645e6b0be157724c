"""The decoder layer by layer: what is shown is what the model computes."""

import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.config import Config, tiny
from maskdino_jax.data import load_image
from maskdino_jax.inference import explain_picture
from maskdino_jax.inference.explain import Explainer
from maskdino_jax.inference.explain_picture import draw_explanation, write_explanations
from maskdino_jax.inference.predictor import Predictor
from maskdino_jax.inference.sources import NamedImage
from maskdino_jax.model import ModelSpec
from maskdino_jax.model.levels import Levels
from maskdino_jax.model.maskdino import normalize
from maskdino_jax.ops.positions import box_sine_embedding
from tests.inference.scenes import catalog_of
from tests.weights import random_variables

CATALOG = catalog_of(True, True, False)
HEIGHT, WIDTH = 64, 128  # as they are on the canvas: nothing is resized; bucketed, the canvas is 96 x 128
LAYERS, COUNT = 2, 3


def config_of(canvas: str) -> Config:
    config = Config()
    tiny(config)
    config.data.eval_short_side, config.data.eval_long_side = 96, WIDTH
    config.data.eval_canvas = canvas
    config.inference.score_threshold = 0.0
    config.model.encoder.in_features = ("res4", "res5")
    config.model.encoder.num_levels = 2
    config.model.decoder.num_queries = 16
    return config


SPEC = ModelSpec(config_of("exact").model, CATALOG.num_classes)


@pytest.fixture(scope="module")
def variables():
    return random_variables(SPEC)


@pytest.fixture(scope="module")
def explainer(variables):
    return Explainer(SPEC, variables, CATALOG, config_of("exact"))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def explanation(explainer, image):
    return explainer(image, COUNT)


@pytest.fixture(scope="module")
def bucketed(variables):
    return Explainer(SPEC, variables, CATALOG, config_of("bucketed"))


@pytest.fixture(scope="module")
def padded(bucketed, image):
    """The same on a larger canvas, of which the image is a part."""
    return bucketed(image, COUNT)


@pytest.fixture(scope="module")
def first_layer(variables, image):
    """The first layer's cross-attention, what goes in and what comes out, by the model's own parts."""
    model = SPEC.bind(variables)

    @jax.jit
    def compute(variables):
        model = SPEC.bind(variables)
        features, memory, levels = model._encode(normalize(jnp.asarray(image[None])), None, None)
        sizes.append(levels)
        selection = model._select(memory, levels, features)
        layer, boxes = model.decoder.layers[0], jax.nn.sigmoid(selection.anchors)
        positions = model.decoder.ref_point_head(box_sine_embedding(boxes, selection.content.shape[-1] // 2))
        queries = layer.self_norm(selection.content + layer.self_attn(selection.content, positions, None)) + positions
        return {
            "queries": queries,
            "boxes": boxes,
            "value": layer.cross_attn.value_proj(memory),
            "result": layer.cross_attn(queries, boxes, memory, levels),
        }

    sizes: list[Levels] = []
    arrays = {name: np.asarray(array)[0] for name, array in compute(variables).items()}
    return arrays, model.decoder.layers[0].cross_attn, sizes[0]


def test_there_is_a_stage_for_the_input_and_for_each_layer(explanation):
    samples = math.prod(SPEC.bind(random_variables(SPEC)).decoder.layers[0].cross_attn.shape)
    assert explanation.boxes.shape == (LAYERS + 1, COUNT, 4)
    assert explanation.scores.shape == (LAYERS + 1, COUNT)
    assert explanation.masks.shape == (LAYERS + 1, COUNT, HEIGHT, WIDTH)
    assert explanation.points.shape == (LAYERS, COUNT, samples, 2)
    assert len(set(explanation.objects.queries.tolist())) == COUNT


def test_sampled_points_are_those_worked_by_hand(explanation, first_layer):
    """Centre of the reference box plus the offset times half its side by the number of points (Deformable DETR)."""
    arrays, attention, _ = first_layer
    heads, levels, points = attention.shape
    for row, query in enumerate(explanation.objects.queries.tolist()):
        offsets = arrays["queries"][query] @ np.asarray(attention.sampling_offsets.kernel[...])
        offsets = (offsets + np.asarray(attention.sampling_offsets.bias[...])).reshape(heads * levels * points, 2)
        x, y, w, h = arrays["boxes"][query].tolist()
        expected = np.array(
            [[(x + dx * w / 2 / points) * WIDTH, (y + dy * h / 2 / points) * HEIGHT] for dx, dy in offsets]
        )
        np.testing.assert_allclose(explanation.points[0, row], expected, atol=2e-2)
        corners = (x - w / 2) * WIDTH, (y - h / 2) * HEIGHT, (x + w / 2) * WIDTH, (y + h / 2) * HEIGHT
        np.testing.assert_allclose(explanation.references[0, row], corners, atol=2e-3)


def test_values_at_the_points_times_the_weights_are_what_the_layer_attends_to(explanation, first_layer):
    arrays, attention, levels = first_layer
    heads, count, points = attention.shape
    maps = [np.asarray(level)[0] for level in levels.unflatten(jnp.asarray(arrays["value"])[None])]
    for row, query in enumerate(explanation.objects.queries.tolist()):
        places = explanation.points[0, row].reshape(heads, count, points, 2) / (WIDTH, HEIGHT)
        weights = heads * explanation.weights[0, row].reshape(heads, count, points)
        mixed = [
            sum(
                weights[head, level, point] * _bilinear(_of_head(maps[level], head, heads), places[head, level, point])
                for level in range(count)
                for point in range(points)
            )
            for head in range(heads)
        ]
        result = attention.output_proj(jnp.asarray(np.concatenate(mixed)))
        scale = np.abs(arrays["result"]).max()
        np.testing.assert_allclose(result, arrays["result"][query], atol=2e-3 * scale)


def _of_head(tokens: np.ndarray, head: int, heads: int) -> np.ndarray:
    return np.split(tokens, heads, axis=-1)[head]


def _bilinear(tokens: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The value at (x, y), shares of a map whose pixels sit at their centres; zero beyond."""
    height, width = tokens.shape[:2]
    x, y = place[0] * width - 0.5, place[1] * height - 0.5
    total = np.zeros(tokens.shape[-1])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * tokens[row, column]
    return total


def test_weights_of_a_layer_add_up_to_one(explanation):
    assert (explanation.weights > 0).all()
    np.testing.assert_allclose(explanation.weights.sum(axis=-1), 1, atol=1e-5)


def test_each_layer_looks_from_the_box_that_the_one_before_left(explanation):
    """The first one from the input; later references differ from predictions by a norm (DINO, section 3.5)."""
    np.testing.assert_array_equal(explanation.references[0], explanation.boxes[0])
    assert np.abs(explanation.references[1] - explanation.references[0]).max() > 0.1


def test_the_last_layer_is_what_the_predictor_returns(variables, bucketed):
    """Of an image that is enlarged to 78 x 128 pixels and padded to 96 x 128."""
    image = np.random.default_rng(1).integers(0, 256, (61, 100, 3), np.uint8)
    explanation = bucketed(image, COUNT)
    found = Predictor(SPEC, variables, CATALOG, config_of("bucketed"))(image, task="instance").instances
    rows = [found.queries.tolist().index(query) for query in explanation.objects.queries.tolist()]
    assert rows[0] == 0
    np.testing.assert_allclose(explanation.boxes[-1], found.boxes[rows], atol=5e-3)
    np.testing.assert_allclose(explanation.objects.scores, found.scores[rows], atol=1e-4)
    differing = (explanation.masks[-1] != found.masks[rows]).mean()
    assert differing < 1e-3, f"{differing:.2%} of the pixels; only rounding may tell them apart"


def test_padding_moves_no_point(explanation, padded):
    np.testing.assert_array_equal(padded.objects.queries, explanation.objects.queries)
    np.testing.assert_allclose(padded.points, explanation.points, atol=0.1)
    np.testing.assert_allclose(padded.weights, explanation.weights, atol=1e-3)


def test_objects_below_the_threshold_are_left_out_but_for_the_best_one(explainer, image, explanation, monkeypatch):
    for threshold, count in ((float(explanation.objects.scores[1]) - 1e-4, 2), (1.0, 1)):
        monkeypatch.setattr(explainer, "_threshold", threshold)
        assert len(explainer(image, COUNT).objects) == count


def test_the_files_hold_the_numbers_and_a_picture(explainer, image, tmp_path):
    images = [NamedImage("noise.png", image), NamedImage("noise.jpg", image)]
    picture, other = write_explanations(explainer, images, tmp_path / "out")
    assert (picture.name, other.name) == ("noise.png", "noise_jpg.png")
    assert picture.read_bytes() == other.read_bytes()
    explanation = explainer(image)
    assert load_image(picture).shape == draw_explanation(image, explanation).shape
    content = json.loads((tmp_path / "out/noise.json").read_text())
    assert content["file_name"] == "noise.png"
    for row, entry in enumerate(content["objects"]):
        assert entry["category_id"] == CATALOG.categories[explanation.objects.labels[row]].id
        assert entry["query"] == explanation.objects.queries[row]
        assert [len(stage.get("samples", [])) for stage in entry["stages"]] == [
            0,
            *[explanation.points.shape[2]] * LAYERS,
        ]
        last = entry["stages"][-1]
        assert last["agreement"] == 1
        assert last["mask_area"] == explanation.objects.areas[row]
        np.testing.assert_allclose(last["box"], explanation.objects.boxes[row], atol=1e-3)
        np.testing.assert_allclose(np.array(last["samples"])[:, :2], explanation.points[-1, row], atol=1e-4)


def test_the_heaviest_sample_is_drawn_where_it_is(explanation):
    """Yellow, in the cell of its layer; over black, without the mask."""
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    alone = dataclasses.replace(explanation, masks=None)
    window = explain_picture._window(alone, 0, WIDTH)
    cell = np.asarray(explain_picture._cell(black, alone, (1, 0), (220, 20, 60), window, 200)).astype(int)
    x, y = explanation.points[0, 0, explanation.weights[0, 0].argmax()]
    column, row = (
        int((place - start) * 200 / (window[2] - window[0])) for place, start in ((x, window[0]), (y, window[1]))
    )
    np.testing.assert_allclose(cell[row, column], (255, 245, 120), atol=25)
    before = np.asarray(explain_picture._cell(black, alone, (0, 0), (220, 20, 60), window, 200)).astype(int)
    assert (np.abs(before - (255, 245, 120)) > 25).any(axis=-1).all(), "the decoder's input has sampled nothing yet"


def test_the_picture_has_a_row_for_each_object_and_a_column_for_each_stage(explanation, image):
    sheets = {}
    for rows in (1, 2, 3):
        keep = slice(None, rows)
        fields = {"scores", "labels", "boxes", "queries", "bits"}
        objects = dataclasses.replace(
            explanation.objects, **{name: getattr(explanation.objects, name)[keep] for name in fields}
        )
        parts = {
            name: getattr(explanation, name)[:, keep]
            for name in ("boxes", "scores", "masks", "references", "points", "weights")
        }
        sheets[rows] = draw_explanation(image, dataclasses.replace(explanation, objects=objects, **parts))
    heights = [len(sheet) for sheet in sheets.values()]
    assert heights[2] - heights[1] == heights[1] - heights[0] == 300 + 26 + 10
    grounds = (sheets[3] != (250, 250, 250)).any(axis=-1)
    assert grounds[-36 - 150].sum() > (LAYERS + 1) * 290


def test_without_masks_boxes_are_compared(explanation):
    boxes = explanation.boxes[:, :1].copy()
    boxes[0, 0], boxes[-1, 0] = (10, 10, 30, 30), (20, 10, 40, 30)
    alone = dataclasses.replace(explanation, masks=None, boxes=boxes)
    assert alone.agreement(0, 0) == pytest.approx(1 / 3), "half of each box is shared"
    assert alone.agreement(LAYERS, 0) == 1
    first = dataclasses.replace(explanation, masks=None).to_dict()["objects"][0]["stages"]
    assert [set(stage) for stage in first] == [{"box", "score", "agreement"}] + LAYERS * [
        {"box", "score", "agreement", "reference", "samples"}
    ]


def test_a_model_of_semantic_maps_alone_has_nothing_to_explain(variables):
    config = config_of("exact")
    config.model.class_scores = "softmax"
    with pytest.raises(ValueError, match="softmax': the model makes semantic maps only"):
        Explainer(SPEC, variables, CATALOG, config)


def test_a_decoder_without_deformable_attention_is_refused(image):
    class Other:
        config = config_of("exact").model

        def bind(self, variables):
            return types.SimpleNamespace(decoder=types.SimpleNamespace(layers=[types.SimpleNamespace()]))

    with pytest.raises(ValueError, match=r"config.model.decoder.kind = 'deformable': its layers have no deformable"):
        Explainer(Other(), {}, CATALOG, config_of("exact"))(image)
