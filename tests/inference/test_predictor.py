"""The predictor around a model that finds the bright parts of an image, and around weights on disk."""

import gc
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskdino_jax.checkpoints import Checkpoints, torch_files, torch_import
from maskdino_jax.config import Config, DataConfig, InferenceConfig, ModelConfig, tiny
from maskdino_jax.data import Catalog
from maskdino_jax.inference.predictor import Predictor
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import Outputs
from tests.inference.scenes import SURE, catalog_of
from tests.weights import random_variables

CATALOG = catalog_of(True, False)


class Brightness:
    """A spec whose model has two queries: a thing where the image is bright, stuff where it is dark."""

    def __init__(self, num_classes: int = 2, masks: bool = True):
        self.num_classes = num_classes
        self.config = ModelConfig(masks=masks)
        self.canvases = []  # of each compilation

    def bind(self, variables):
        self.variables = variables
        return self

    def detect(self, images, sizes, extents):
        self.canvases.append(images.shape)
        count, height, width = images.shape[:3]
        grey = images.mean(axis=-1).reshape(count, height // 4, 4, width // 4, 4).mean(axis=(2, 4))
        bright = (grey - 127.5) * self.variables["params"]["gain"]
        logits = jnp.tile(SURE * jnp.array([[1.0, -1.0], [-1.0, 1.0]]), (count, 1, 1))
        boxes = jnp.full((count, 2, 4), 0.5)
        masks = jnp.stack([bright, -bright], axis=1)
        return Outputs(logits=logits, boxes=boxes, masks=masks, mask_features=bright, proposals=None, heads=None)


def config_of(**inference) -> Config:
    return Config(data=DataConfig(eval_short_side=64, eval_long_side=96), inference=InferenceConfig(**inference))


def predictor_of(**inference) -> Predictor:
    return Predictor(Brightness(), {"params": {"gain": np.float32(0.1)}}, CATALOG, config_of(**inference))


def picture(height: int, width: int, bright: tuple[slice, slice]) -> np.ndarray:
    pixels = np.full((height, width, 3), 20, np.uint8)
    pixels[bright] = 230
    return pixels


LEFT = picture(64, 96, (slice(None), slice(0, 40)))
TALL = picture(120, 80, (slice(0, 60), slice(None)))  # resized, and upright
SMALL = picture(32, 48, (slice(8, 16), slice(8, 24)))  # enlarged twice
CORNER = picture(64, 64, (slice(0, 32), slice(0, 32)))  # bucketed: on a canvas of its own


@pytest.fixture(scope="module")
def predictor():
    """It returns what it is not sure of, too."""
    return predictor_of(score_threshold=0)


def same(one, other) -> bool:
    return (
        np.array_equal(one.instances.bits, other.instances.bits)
        and np.array_equal(one.instances.boxes, other.instances.boxes)
        and np.array_equal(one.panoptic.ids, other.panoptic.ids)
        and np.array_equal(one.semantic, other.semantic)
    )


def test_objects_are_where_they_are_in_the_file(predictor):
    for image in (LEFT, TALL, SMALL):
        bright = image[..., 0] > 127
        segments = predictor(image)
        thing = segments.segments[0]
        assert (thing.name, thing.class_id, thing.mask.shape) == ("class 0", 7, image.shape[:2])
        assert np.mean(thing.mask != bright) < 0.02
        assert np.mean(segments.semantic != ~bright) < 0.02
        assert [part.is_thing for part in segments.panoptic.segments] == [True, False]
        height, width = image.shape[:2]
        np.testing.assert_allclose(thing.box, [width / 4, height / 4, 3 * width / 4, 3 * height / 4], rtol=0.35)


def test_the_images_of_a_list_are_answered_in_its_order_as_each_alone():
    predictor = predictor_of(batch_size=2)
    images = [TALL, LEFT, SMALL, CORNER, LEFT[:, ::-1]]
    together = predictor(images)
    assert isinstance(together, list)
    assert all(same(found, predictor(image)) for found, image in zip(together, images, strict=True))
    assert not same(together[1], together[4])
    assert predictor([]) == []


def test_full_batches_go_together_and_the_rest_one_by_one():
    spec = Brightness()
    predictor = Predictor(spec, {"params": {"gain": np.float32(0.1)}}, CATALOG, config_of(batch_size=2))
    predictor([LEFT] * 5)
    assert spec.canvases == [(2, 64, 96, 3), (1, 64, 96, 3)]


def test_a_path_a_pil_image_and_an_array_are_the_same_image(predictor, tmp_path):
    Image.fromarray(SMALL).save(tmp_path / "small.png")
    expected = predictor(SMALL)
    for image in (tmp_path / "small.png", str(tmp_path / "small.png"), Image.fromarray(SMALL)):
        assert same(predictor(image), expected)
    assert same(predictor([tmp_path / "small.png"])[0], expected)
    assert predictor.draw(tmp_path / "small.png", expected).shape == (512, 768, 3)


@pytest.mark.parametrize("canvas", ["exact", "bucketed"])
def test_the_canvas_changes_nothing(predictor, canvas):
    other = predictor_of(score_threshold=0)
    other.config.data.eval_canvas = canvas
    image = picture(50, 61, (slice(3, 20), slice(4, 44)))
    assert same(other(image), predictor(image))


def test_one_task_alone_is_the_same_as_among_all(predictor):
    everything = predictor(SMALL)
    for task in ("instance", "panoptic", "semantic"):
        alone = predictor(SMALL, task=task)
        field = "instances" if task == "instance" else task
        assert [name for name in ("instances", "panoptic", "semantic") if getattr(alone, name) is not None] == [field]
    np.testing.assert_array_equal(predictor(SMALL, task="instance").instances.bits, everything.instances.bits)
    assert [part.label for part in predictor(SMALL, task="instance").segments] == [0, 0], "stuff is no instance"
    assert [part.name for part in predictor(SMALL, task="panoptic").segments] == ["class 0", "class 1"]


def test_a_task_that_the_model_does_not_do_is_an_error():
    predictor = predictor_of(tasks=("semantic",))
    with pytest.raises(ValueError, match="task = 'instance': this model does semantic"):
        predictor(SMALL, task="instance")
    with pytest.raises(ValueError, match="task = 'keypoints'"):
        predictor(SMALL, task="keypoints")
    assert predictor(SMALL).instances is None


@pytest.mark.parametrize(
    "image", [SMALL.astype(np.float32), SMALL[..., 0], np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_pixels_that_are_not_rgb_bytes_are_an_error(predictor, image):
    with pytest.raises(ValueError, match=r"give RGB bytes, uint8 of shape \[height, width, 3\]"):
        predictor(image)


def test_weights_for_other_classes_than_the_catalogs_are_an_error():
    with pytest.raises(ValueError, match="for 3 classes but the catalog has 2"):
        Predictor(Brightness(num_classes=3), {}, CATALOG, config_of())


def test_the_score_threshold_of_the_config_is_that_of_results_and_pictures(predictor):
    """One query is sure of its class, the other is not."""
    everything = predictor(SMALL)
    sure, unsure = everything.instances.scores
    assert unsure < 0.5 < sure
    for threshold, count in ((0.0, 2), (0.5, 1), (0.99, 0)):
        found = predictor_of(score_threshold=threshold)(SMALL)
        assert len(found.instances) == len(found.of("instance")) == count
    drawn = predictor_of().draw(SMALL, everything)
    np.testing.assert_array_equal(drawn, predictor_of().draw(SMALL, predictor_of()(SMALL)))
    assert (drawn != predictor.draw(SMALL, everything)).any(), "more instances without a threshold"


def test_detection_finds_the_things_without_asking_for_masks():
    predictor = predictor_of(tasks=("detection",))
    found = predictor(SMALL)
    assert {(part.name, part.is_thing) for part in found.of("detection")} == {("class 0", True)}
    assert found.instances.bits is None
    assert found.panoptic is found.semantic is None
    seen = []
    begin = predictor._postprocessor.begin
    predictor._postprocessor.begin = lambda outputs, *others: seen.append(outputs) or begin(outputs, *others)
    predictor(SMALL)
    (outputs,) = seen
    assert outputs.masks is outputs.mask_features is None
    assert outputs.boxes.shape == (1, 2, 4)


def test_weights_that_learned_no_masks_are_for_detection_only():
    spec = Brightness(masks=False)
    with pytest.raises(ValueError, match=r"inference\.tasks = \('instance',\): .* Give \('detection',\)"):
        Predictor(spec, {}, CATALOG, config_of(tasks=("instance",)))
    assert Predictor(spec, {}, CATALOG, config_of(tasks=("detection",))).catalog is CATALOG


def test_the_threshold_of_a_call_goes_before_that_of_the_config(predictor):
    sure = predictor_of()
    assert len(sure(SMALL).instances) == 1
    assert len(sure(SMALL, score_threshold=0.0).instances) == 2
    assert len(predictor(SMALL, score_threshold=0.99).instances) == 0
    assert [len(found.instances) for found in predictor([SMALL, LEFT], score_threshold=0.5)] == [1, 1]
    (found,) = predictor.stream(SMALL, score_threshold=0.5)
    assert len(found.segments.instances) == 1
    everything = predictor(SMALL)
    drawn = sure.draw(SMALL, everything, score_threshold=0.0)
    np.testing.assert_array_equal(drawn, predictor.draw(SMALL, everything))
    assert (drawn != sure.draw(SMALL, everything)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 50}, r"score_threshold = 50: give a number from 0 to 1"),
        ({"slice_size": -3}, r"slice_size = -3: give the side of a tile in pixels"),
        ({"slice_overlap": 0.9}, r"slice_overlap = 0\.9: give a share above 0 and up to 0\.5"),
        ({"task": "keypoints"}, r"task = 'keypoints': this model does"),
    ],
)
def test_options_out_of_range_are_errors_before_anything_is_read(predictor, options, message):
    for ask in (predictor, predictor.stream):
        with pytest.raises(ValueError, match=message):
            ask("missing.png", **options)


# --- streams ---------------------------------------------------------------------------------------------------------


def numbered(count: int, *shapes: np.ndarray):
    """Pictures of several canvases in turn, each with a negative of some columns of its own."""
    for number in range(count):
        pixels = shapes[number % len(shapes)].copy()
        columns = slice(4 * (number % 8), 4 * (number % 8) + 8)
        pixels[:, columns] = 255 - pixels[:, columns]
        yield pixels


@pytest.mark.parametrize("together", [1, 3])
def test_a_stream_answers_in_its_order_as_each_image_alone(together):
    predictor = predictor_of(batch_size=together, score_threshold=0)
    pictures = list(numbered(11, LEFT, TALL, LEFT, CORNER, LEFT))
    found = list(predictor.stream(iter(pictures)))
    assert [one.name for one in found] == [f"{number:06d}.png" for number in range(11)]
    for one, pixels in zip(found, pictures, strict=True):
        assert one.image is pixels
        assert same(one.segments, predictor(pixels))
    assert not same(found[0].segments, found[5].segments)


@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("shapes", [(LEFT,), (LEFT, TALL), (LEFT, TALL, CORNER, SMALL)])
def test_a_stream_holds_two_batches_of_images_and_no_more(together, shapes):
    read = 0

    def endless():
        nonlocal read
        for pixels in numbered(1000, *shapes):
            read += 1
            yield pixels

    spec = Brightness()
    predictor = Predictor(spec, {"params": {"gain": np.float32(0.1)}}, CATALOG, config_of(batch_size=together))
    for taken, _ in zip(range(40), predictor.stream(endless(), "semantic"), strict=False):
        assert read - taken <= 2 * together
    if len(shapes) <= 2 and together > 1:
        assert {canvas[0] for canvas in spec.canvases} == {together}, "no image has gone alone"


def test_memory_does_not_grow_with_the_length_of_a_stream():
    """Frames of 192 KiB and semantic maps of 256 KiB: forty of them would take 17 MiB."""
    predictor = predictor_of(batch_size=2)
    large = np.tile(CORNER, (4, 4, 1))
    peaks = []
    for count in (8, 8, 40):  # the first one compiles
        gc.collect()
        tracemalloc.start()
        for _ in predictor.stream(numbered(count, large), "semantic"):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.25 * peaks[1] < 4 << 20, peaks


def test_sources_of_the_runner_are_those_of_a_stream(predictor, tmp_path):
    for name, pixels in (("b.png", SMALL), ("a.png", LEFT)):
        Image.fromarray(pixels).save(tmp_path / name)
    first, second = predictor.stream(tmp_path)
    assert (first.name, second.name) == ("a.png", "b.png")
    assert same(first.segments, predictor(LEFT))
    assert same(second.segments, predictor(SMALL))
    with pytest.raises(ValueError, match=r"is a folder, .* use stream\("):
        predictor(tmp_path)


def test_a_warm_up_compiles_what_the_images_need_and_says_so(caplog):
    spec = Brightness()
    predictor = Predictor(spec, {"params": {"gain": np.float32(0.1)}}, CATALOG, config_of(batch_size=2))
    with caplog.at_level("INFO"):
        predictor.warm_up(LEFT.shape[:2], (300, 400), slice_size=64)
    assert spec.canvases == [(1, 64, 64, 3), (2, 64, 64, 3)]
    lines = [record.getMessage() for record in caplog.records if "warm-up" in record.getMessage()]
    assert [re.sub(r"\d+\.\d s", "T", line) for line in lines] == 2 * [
        "warm-up: 1 of 64 x 64 pixels at a time, T",
        "warm-up: 2 of 64 x 64 pixels at a time, T",
    ]
    predictor.warm_up(LEFT.shape[:2])
    assert len(spec.canvases) == 4
    predictor([LEFT] * 3)
    predictor(np.zeros((300, 400, 3), np.uint8), slice_size=64)
    assert len(spec.canvases) == 4, "nothing is left to compile"


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_an_image_that_fits_into_a_tile_is_predicted_as_without_tiles(predictor):
    for image in (LEFT, SMALL):
        assert same(predictor(image, slice_size=96), predictor(image))


@pytest.mark.parametrize("together", [1, 3])
def test_objects_across_tiles_are_whole(together):
    """Bright squares: one in a tile, one across two, one across four. Each tile sees what is bright as one object."""
    predictor = predictor_of(batch_size=together)
    image = np.full((160, 176, 3), 20, np.uint8)
    image[48:112, 40:136] = 230
    found = predictor(image, slice_size=64, slice_overlap=0.25)
    bright = image[..., 0] > 127
    (thing,) = found.of("instance")
    assert np.mean(thing.mask != bright) < 0.02
    assert [part.is_thing for part in sorted(found.of("panoptic"), key=lambda part: part.is_thing)] == [False, True]
    assert np.mean(found.semantic != ~bright) < 0.02
    assert [one.name for one in predictor.stream([image, SMALL], slice_size=64)] == ["000000.png", "000001.png"]


def test_tiles_of_the_config_are_those_of_a_call():
    image = np.concatenate([LEFT] * 2)
    by_config = predictor_of(slice_size=64, slice_overlap=0.5)(image)
    by_call = predictor_of()(image, slice_size=64, slice_overlap=0.5)
    np.testing.assert_array_equal(by_config.instances.masks, by_call.instances.masks)
    np.testing.assert_array_equal(by_config.panoptic.ids, by_call.panoptic.ids)


# --- weights on disk -------------------------------------------------------------------------------------------------


def tiny_config(**data) -> Config:
    config = Config(data=DataConfig(**data))
    tiny(config)
    return config


def equal(one, other) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), one, other))


def test_a_checkpoint_brings_its_classes_and_config(tmp_path):
    config = tiny_config()
    variables = random_variables(ModelSpec(config.model, 2))
    checkpoints = Checkpoints(tmp_path, config, CATALOG.to_dict())
    checkpoints.save({"step": 3, **jax.tree.map(jnp.asarray, variables)})
    checkpoints.close()
    predictor = Predictor.from_checkpoint(tmp_path)
    assert predictor.catalog == CATALOG
    assert predictor.config == config
    assert equal(predictor._variables, variables)
    other = config_of(tasks=("panoptic",))
    assert Predictor.from_checkpoint(str(tmp_path), config=other).config is other


def test_official_weights_take_their_classes_from_the_named_list(tmp_path):
    config = tiny_config(classes="cityscapes")
    variables = random_variables(ModelSpec(config.model, 19))
    torch_files.write_pth(tmp_path / "model.pth", torch_import.to_state_dict(variables, config.model, 19))
    predictor = Predictor.from_torch(tmp_path / "model.pth", config)
    assert predictor.catalog == Catalog.named("cityscapes")
    assert equal(predictor._variables, variables)
    with pytest.raises(ValueError, match="for 19 classes but the catalog has 133"):
        Predictor.from_torch(tmp_path / "model.pth", tiny_config(classes="coco_panoptic"))
    with pytest.raises(ValueError, match=r"config\.data\.classes = ''"):
        Predictor.from_torch(tmp_path / "model.pth", tiny_config())
