"""The config files: every variant is valid, and has the numbers of the official configs and of the paper."""

import importlib.util
import json
import operator
from pathlib import Path
from types import ModuleType

import pytest

from maskdino_jax import data
from maskdino_jax.config import Config, ConfigError, SplitConfig, backbone
from maskdino_jax.validation import validate

CONFIGS = Path(__file__).parent.parent / "configs"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


NAMES = sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))
VARIANTS = [(name, variant) for name in NAMES for variant in module(name).VARIANTS]


def load(name: str, variant: str) -> Config:
    return module(name).get_config(variant)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_is_valid_and_named_after_itself(name: str, variant: str) -> None:
    assert validate(load(name, variant)).name == f"{name}_{variant}"


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_variant_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}\.py has no variant 'huge': choose (r50|swin_l|small), ") as error:
        load(name, "huge")
    assert all(variant in str(error.value) for variant in module(name).VARIANTS)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"nuclei_panoptic"}))
def test_the_default_is_the_resnet_50_of_the_paper_or_the_network_that_it_pretrained(name: str) -> None:
    config = module(name).get_config()
    net = "swin_l" if name == "objects365_detection" else "r50"
    assert config.name == f"{name}_{net}"
    assert config.model.backbone.depths == backbone(net).depths
    assert (config.model.encoder.layers, config.model.decoder.layers, config.model.hidden_dim) == (6, 9, 256)


def test_the_default_for_nuclei_goes_on_with_the_network_that_learned_from_pieces() -> None:
    whole, pieces = module("nuclei_panoptic").get_config(), load("nuclei_panoptic", "pieces")
    assert (whole.name, whole.data.image_size) == ("nuclei_panoptic_small", (384, 384))
    # Neither the encoder's queries nor the denoising slots have parameters.
    whole.model.decoder.num_queries = pieces.model.decoder.num_queries
    whole.model.denoising.num_queries = pieces.model.denoising.num_queries
    assert pieces.model == whole.model


def test_every_nucleus_of_a_whole_image_may_be_found() -> None:
    config = load("nuclei_panoptic", "small")
    most = max(len(objects) for objects in _objects("train") + _objects("val"))
    assert most <= min(config.data.max_instances, config.model.decoder.num_queries)
    assert most - 1 <= config.inference.detections_per_image  # the background is no instance


def _objects(split: str) -> list[list]:
    annotations = Path(data.__file__).parent / f"samples/nuclei/annotations/panoptic_{split}.json"
    return [image["segments_info"] for image in json.loads(annotations.read_text())["annotations"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_header_names_every_model(name: str) -> None:
    header = module(name).__doc__
    for variant in module(name).VARIANTS:
        assert variant.removesuffix("_12ep").removesuffix("_24ep") in header


FINE, COARSE = "fine_to_coarse", "coarse_to_fine"
NETWORKS = {  # backbone, levels, of them in the backbone, order, encoder width, queries, boxes
    ("coco_instance", "r50"): ("r50", 4, 3, FINE, 2048, 300, "mask2box"),
    ("coco_instance", "r50_no_mask_enhance"): ("r50", 4, 3, FINE, 2048, 300, "none"),
    ("coco_instance", "r50_100q"): ("r50", 4, 3, FINE, 2048, 100, "none"),
    ("coco_instance", "r50_bitmask"): ("r50", 4, 3, FINE, 2048, 300, "bitmask"),
    ("coco_instance", "r50_hid1024"): ("r50", 3, 3, COARSE, 1024, 300, "bitmask"),
    ("coco_instance", "r50_5scale"): ("r50", 5, 3, COARSE, 1024, 300, "none"),
    ("coco_instance", "r50_res2"): ("r50", 4, 4, FINE, 2048, 300, "none"),
    ("coco_instance", "swin_t"): ("swin_t", 5, 4, FINE, 2048, 300, "bitmask"),
    ("coco_instance", "swin_s"): ("swin_s", 5, 4, FINE, 2048, 300, "bitmask"),
    ("coco_instance", "swin_b"): ("swin_b", 5, 4, FINE, 2048, 300, "bitmask"),
    ("coco_instance", "swin_l"): ("swin_l", 5, 4, FINE, 2048, 300, "bitmask"),
    ("coco_instance", "swin_l_no_mask_enhance"): ("swin_l", 5, 4, FINE, 2048, 300, "none"),
    ("coco_instance", "swin_l_hid1024"): ("swin_l", 5, 4, FINE, 1024, 300, "bitmask"),
    ("coco_instance", "swin_l_1280"): ("swin_l", 5, 4, FINE, 2048, 300, "bitmask"),
    ("coco_panoptic", "r50"): ("r50", 4, 3, FINE, 2048, 300, "none"),
    ("coco_panoptic", "r50_decoupled"): ("r50", 4, 3, FINE, 2048, 300, "none"),
    ("coco_panoptic", "swin_t"): ("swin_t", 5, 4, FINE, 2048, 300, "none"),
    ("coco_panoptic", "swin_s"): ("swin_s", 5, 4, FINE, 2048, 300, "none"),
    ("coco_panoptic", "swin_b"): ("swin_b", 5, 4, FINE, 2048, 300, "none"),
    ("coco_panoptic", "swin_l"): ("swin_l", 5, 4, FINE, 2048, 300, "none"),
    ("coco_panoptic", "swin_l_mask_enhanced"): ("swin_l", 5, 4, FINE, 2048, 300, "bitmask"),
    ("coco_panoptic", "swin_l_1280"): ("swin_l", 5, 4, FINE, 2048, 300, "none"),
    ("objects365_detection", "swin_l"): ("swin_l", 5, 4, FINE, 2048, 900, "none"),
    ("objects365_detection", "r50"): ("r50", 4, 3, FINE, 2048, 900, "none"),
    ("ade20k_semantic", "r50"): ("r50", 3, 3, COARSE, 1024, 100, "none"),
    ("ade20k_semantic", "swin_l_900q"): ("swin_l", 5, 4, FINE, 2048, 900, "none"),
    ("ade20k_panoptic", "r50"): ("r50", 4, 3, FINE, 2048, 300, "none"),
    ("ade20k_instance", "r50"): ("r50", 4, 3, FINE, 2048, 300, "mask2box"),
    ("cityscapes_semantic", "r50"): ("r50", 3, 3, COARSE, 1024, 100, "none"),
    ("custom", "r50"): ("r50", 4, 3, FINE, 2048, 300, "mask2box"),
    ("custom", "instance"): ("r50", 4, 3, FINE, 2048, 300, "mask2box"),
    ("custom", "detection"): ("r50", 4, 3, FINE, 2048, 300, "none"),
    ("custom", "panoptic"): ("r50", 4, 3, FINE, 2048, 300, "none"),
    ("custom", "semantic"): ("r50", 3, 3, COARSE, 1024, 100, "none"),
}


def test_the_table_of_networks_is_complete() -> None:
    models = {(name, variant.removesuffix("_12ep").removesuffix("_24ep")) for name, variant in VARIANTS}
    small = {(name, variant) for name, variant in models if variant in ("tiny", "quick", "small", "pieces")}
    assert set(NETWORKS) == models - small - {("nuclei_panoptic", "r50")}


@pytest.mark.parametrize(("key", "network"), NETWORKS.items(), ids=[" ".join(key) for key in NETWORKS])
def test_networks_are_those_of_the_official_configs(key: tuple[str, str], network: tuple) -> None:
    config = load(*key)
    net, levels, features, order, width, queries, box_init = network
    expected = backbone(net)
    expected.norm = "batch_norm" if key[0] == "cityscapes_semantic" else "frozen_bn"
    model = config.model
    assert model.backbone == expected
    assert model.backbone.kind == "resnet" or model.backbone.drop_path == 0.3
    assert (model.encoder.num_levels, len(model.encoder.in_features)) == (levels, features)
    assert (model.encoder.order, model.encoder.ffn_dim) == (order, width)
    assert (model.decoder.num_queries, model.decoder.box_init, model.decoder.ffn_dim) == (queries, box_init, 2048)
    semantic = "semantic" in (key[0].partition("_")[2], key[1])
    assert (model.decoder.query_source, model.class_scores) == (
        ("learned", "softmax") if semantic else ("encoder", "sigmoid")
    )
    assert (config.inference.object_threshold, config.inference.overlap_threshold) == (0.8 if semantic else 0.25, 0.8)


SCHEDULES = {
    ("coco_instance", "r50"): (368_750, (327_778, 355_092)),
    ("coco_instance", "swin_l_12ep"): (88_500, (81_125,)),
    ("coco_instance", "r50_100q_24ep"): (177_000, (147_500,)),
    ("coco_panoptic", "swin_l"): (368_750, (327_778, 355_092)),
    ("coco_panoptic", "r50_12ep"): (88_500, (81_125,)),
    ("coco_panoptic", "swin_l_mask_enhanced_24ep"): (177_000, (147_500,)),
    ("coco_instance", "swin_l_1280"): (177_000, (147_500,)),
    ("coco_panoptic", "swin_l_1280"): (177_000, (147_500,)),
    ("coco_panoptic", "r50_decoupled"): (368_750, (327_778, 355_092)),
    ("ade20k_semantic", "r50"): (160_000, (135_000, 150_000)),
    ("ade20k_semantic", "swin_l_900q"): (160_000, (135_000, 150_000)),
    ("cityscapes_semantic", "r50"): (90_000, (80_000, 87_000)),
}


@pytest.mark.parametrize(("key", "schedule"), SCHEDULES.items(), ids=[" ".join(key) for key in SCHEDULES])
def test_schedules_are_those_of_the_official_configs(key: tuple[str, str], schedule: tuple) -> None:
    config = load(*key)
    assert (config.train.steps, config.optimizer.milestones) == schedule
    assert (config.train.batch_size, config.optimizer.learning_rate, config.optimizer.warmup_steps) == (16, 1e-4, 0)


@pytest.mark.parametrize(("name", "variant"), [pair for pair in VARIANTS if pair[1].endswith("ep")])
def test_a_shorter_schedule_changes_nothing_else(name: str, variant: str) -> None:
    short, long = load(name, variant), load(name, variant[: -len("_12ep")])
    epochs = int(variant[-4:-2])
    assert short.train.steps == epochs * 7375
    short.name, short.train.steps, short.optimizer.milestones = (
        long.name,
        long.train.steps,
        long.optimizer.milestones,
    )
    assert short == long


@pytest.mark.parametrize("name", ["coco_instance", "coco_panoptic"])
def test_coco_recipes(name: str) -> None:
    data = load(name, "swin_l").data
    assert (data.augmentation, data.image_size, data.scale, data.flip) == (
        "large_scale_jitter",
        (1024, 1024),
        (0.1, 2.0),
        0.5,
    )
    assert (data.eval_short_side, data.eval_long_side, data.keep_empty) == (800, 1333, True)
    assert data.classes == {"coco_instance": "coco_instances", "coco_panoptic": "coco_panoptic"}[name]


@pytest.mark.parametrize("name", ["coco_instance", "coco_panoptic"])
def test_the_fine_tuning_at_1280_is_the_24_epochs_of_swin_l_on_larger_images(name: str) -> None:
    large, usual = load(name, "swin_l_1280"), load(name, "swin_l_24ep")
    assert large.data.image_size == (1280, 1280)
    assert (large.data.eval_short_side, large.data.eval_long_side) == (1.2 * 800, 1600)
    large.name, large.data = usual.name, usual.data
    assert large == usual


def test_only_the_decoupled_variants_leave_out_boxes_of_stuff() -> None:
    switches = lambda pair: (load(*pair).loss.box_loss_things_only, load(*pair).loss.match_box_things_mean)
    found = {pair: switches(pair) for pair in VARIANTS}
    expected = {("coco_panoptic", f"r50_decoupled{epochs}"): (True, True) for epochs in ("", "_12ep", "_24ep")}
    assert {pair: value for pair, value in found.items() if any(value)} == expected
    decoupled, usual = load("coco_panoptic", "r50_decoupled"), load("coco_panoptic", "r50")
    decoupled.name, decoupled.loss = usual.name, usual.loss
    assert decoupled == usual


def test_detection_learns_no_masks_for_26_epochs_of_objects365() -> None:
    config = load("objects365_detection", "swin_l")
    assert (config.model.masks, config.model.denoising.mode, config.inference.tasks) == (False, "boxes", ("detection",))
    assert (config.train.batch_size, config.train.steps) == (64, 707_805)
    assert config.train.steps * 64 == pytest.approx(26 * 1_742_289, abs=64)
    assert config.optimizer.milestones == (637_024, 672_415)
    assert config.best_metric == "bbox/AP"
    without = {pair for pair in VARIANTS if not load(*pair).model.masks}
    of_objects365 = {("objects365_detection", variant) for variant in ("swin_l", "r50", "tiny")}
    assert without == of_objects365 | {("custom", "detection")}


@pytest.mark.parametrize(
    ("pretrained", "name", "variant"),
    [
        ("swin_l", "coco_instance", "swin_l_1280"),
        ("swin_l", "coco_panoptic", "swin_l_1280"),
        ("swin_l", "ade20k_semantic", "swin_l_900q"),
        ("r50", "coco_instance", "r50"),
        ("r50", "coco_panoptic", "r50_decoupled"),
        ("tiny", "coco_instance", "tiny"),
    ],
)
def test_what_is_fine_tuned_has_the_network_that_was_pretrained(pretrained: str, name: str, variant: str) -> None:
    before, after = load("objects365_detection", pretrained).model, load(name, variant).model
    assert (before.backbone, before.encoder) == (after.backbone, after.encoder)
    assert (before.decoder.layers, before.decoder.ffn_dim) == (after.decoder.layers, after.decoder.ffn_dim)
    assert (before.hidden_dim, before.num_heads, before.num_points) == (
        after.hidden_dim,
        after.num_heads,
        after.num_points,
    )


@pytest.mark.parametrize(
    ("path", "value", "remedy"),
    [
        ("model.decoder.box_init", "mask2box", "has no boxes of masks: give none"),
        ("model.denoising.mode", "masks", "cannot denoise them: give boxes or none"),
        ("inference.tasks", ("instance",), r"finds boxes: give \('detection',\)"),
        ("data.format", "coco_panoptic", "give coco_instances"),
        ("best_metric", "segm/AP", "give a metric of one of config.inference.tasks"),
    ],
)
def test_what_needs_masks_is_refused_without_them(path: str, value: object, remedy: str) -> None:
    config = load("objects365_detection", "r50")
    part, _, option = path.rpartition(".")
    setattr(operator.attrgetter(part)(config) if part else config, option, value)
    with pytest.raises(ConfigError, match=rf"config\.{path} = .*{remedy}"):
        validate(config)


@pytest.mark.parametrize("name", ["coco_instance", "coco_panoptic"])
def test_a_model_with_masks_may_be_asked_for_boxes_alone(name: str) -> None:
    config = load(name, "r50")
    config.best_metric, config.inference.tasks = "bbox/AP", ("detection",)
    assert validate(config) is config
    config.inference.tasks = ("detection", "panoptic")
    with pytest.raises(ConfigError, match=r"inference\.tasks = .*: detection leaves the masks out, .* give it alone"):
        validate(config)


@pytest.mark.parametrize(
    ("name", "sides", "long_side", "crop", "evaluated"),
    [
        (
            "ade20k_semantic",
            (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024),
            2048,
            (512, 512),
            (512, 2048),
        ),
        (
            "cityscapes_semantic",
            (512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433, 1536, 1638, 1740, 1843, 1945, 2048),
            4096,
            (512, 1024),
            (1024, 2048),
        ),
    ],
)
def test_semantic_recipes(name: str, sides: tuple, long_side: int, crop: tuple, evaluated: tuple) -> None:
    config = load(name, "r50")
    data = config.data
    assert (data.augmentation, data.short_sides, data.long_side) == ("short_edge", sides, long_side)
    assert (data.image_size, data.color_jitter, data.flip, data.keep_empty) == (crop, True, 0.5, False)
    assert (data.eval_short_side, data.eval_long_side) == evaluated
    assert (data.format, data.classes) == ("semantic", name.removesuffix("_semantic"))
    assert (config.inference.tasks, config.best_metric) == (("semantic",), "sem_seg/mIoU")


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("classes", "", "name no classes: give ade20k or cityscapes"),
        ("classes", "coco_panoptic", "give ade20k or cityscapes"),
        ("short_sides", (), r"give the pixels of the shorter side, such as \(256, 512, 1024\)"),
        ("short_sides", (0, 512), "give the pixels of the shorter side"),
        ("long_side", 1000, r"give at least 1024, the largest short side"),
        ("augmentation", "none", "choose one of large_scale_jitter, short_edge"),
    ],
)
def test_semantic_options_that_cannot_work_are_named(option: str, value: object, remedy: str) -> None:
    config = load("ade20k_semantic", "r50")
    setattr(config.data, option, value)
    with pytest.raises(ConfigError, match=rf"config\.data\.{option} = .*: .*{remedy}"):
        validate(config)


@pytest.mark.parametrize(
    ("variant", "official"),
    [
        ("instance", ("coco_instance", "r50")),
        ("panoptic", ("coco_panoptic", "r50")),
        ("semantic", ("ade20k_semantic", "r50")),
    ],
)
def test_a_fine_tuning_on_own_data_has_the_network_of_the_weights_that_it_starts_from(
    variant: str, official: tuple[str, str]
) -> None:
    config, known = load("custom", variant), load(*official)
    assert config.model == known.model
    assert (config.inference, config.best_metric, config.loss) == (known.inference, known.best_metric, known.loss)
    assert config.data.format == "auto"
    assert (config.data.short_sides, config.data.eval_short_side) == (
        known.data.short_sides,
        known.data.eval_short_side,
    )


@pytest.mark.parametrize("kind", ["panoptic", "instance"])
def test_objects_of_ade20k_are_learned_by_the_network_for_coco_on_the_images_of_the_semantic_recipe(kind: str) -> None:
    config, network, recipe = load(f"ade20k_{kind}", "r50"), load(f"coco_{kind}", "r50"), load("ade20k_semantic", "r50")
    assert (config.model, config.loss, config.inference) == (network.model, network.loss, network.inference)
    assert (config.train, config.optimizer) == (recipe.train, recipe.optimizer)
    for part in (config.data, recipe.data):
        part.format, part.classes, part.train, part.val = "auto", "", SplitConfig(), SplitConfig()
    assert config.data == recipe.data


def test_the_large_semantic_model_and_small_batches_of_nuclei_have_a_moving_average() -> None:
    averaged = {pair for pair in VARIANTS if load(*pair).train.ema_decay > 0}
    assert averaged == {("ade20k_semantic", "swin_l_900q"), ("nuclei_panoptic", "small"), ("nuclei_panoptic", "pieces")}
