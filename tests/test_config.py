"""Options: every config file validates, every mistake is named with its remedy."""

import dataclasses
import json

import pytest

from maskdino_jax.config import Config, ConfigError, flatten, from_dict, tiny
from maskdino_jax.validation import differences, explain_unknown_option, validate


@pytest.mark.parametrize(
    ("path", "value", "remedy"),
    [
        ("data.format", "voc", "coco_panoptic, coco_instances"),
        ("model.hidden_dim", 100, "multiple of"),
        ("model.encoder.in_features", ("res2", "res4", "res5"), "consecutive"),
        ("model.encoder.num_levels", 2, "at least 3"),
        ("data.image_size", (1000, 1024), "multiples of 32"),
        ("data.scale", (2.0, 0.1), "smallest and the largest"),
        ("data.eval_long_side", 500, "eval_short_side = 800"),
        ("train.accumulate", 3, "divisor of train.batch_size = 16"),
        ("train.batch_size", 0, "at least 1"),
        ("train.ema_decay", 1.0, "below 1"),
        ("train.seed", -1, "0 or a positive"),
        ("loss.importance_ratio", 1.5, "from 0 to 1"),
        ("inference.tasks", ("boxes",), "instance, panoptic, semantic, detection"),
        ("inference.slice_size", -8, "side of a tile in pixels, or 0"),
        ("inference.slice_overlap", 0.0, "above 0 and up to 0.5"),
        ("best_metric", "accuracy", "panoptic_seg/PQ"),
        ("optimizer.milestones", (5, 3), "ascending"),
    ],
)
def test_a_wrong_value_is_an_error_with_path_value_and_remedy(path: str, value: object, remedy: str) -> None:
    config = Config()
    *parents, leaf = path.split(".")
    holder = config
    for parent in parents:
        holder = getattr(holder, parent)
    setattr(holder, leaf, value)
    with pytest.raises(ConfigError) as raised:
        validate(config)
    message = str(raised.value)
    assert f"config.{path} = {value!r}" in message
    assert remedy in message


def test_instances_cannot_be_evaluated_as_stuff() -> None:
    config = Config()
    config.data.format = "coco_instances"
    with pytest.raises(ConfigError, match="COCO instances have no stuff"):
        validate(config)


def test_a_misspelt_field_is_an_error_in_a_file() -> None:
    config = Config()
    with pytest.raises(AttributeError):
        config.train.bach_size = 3


def test_a_misspelt_option_names_the_nearest_one() -> None:
    message = explain_unknown_option(["main.py", "--config.train.bach_size=3"], KeyError("bach_size"))
    assert "--config.train.bach_size=3" in message
    assert "--config.train.batch_size" in message


def test_a_config_survives_json() -> None:
    config = Config()
    tiny(config)
    again = from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert isinstance(again.data.image_size, tuple)


def test_an_option_of_another_version_is_named() -> None:
    values = dataclasses.asdict(Config())
    values["train"]["magic"] = 3
    with pytest.raises(ConfigError, match=r"unknown option train\.magic = 3"):
        from_dict(values)


def test_only_options_that_shape_the_run_count_as_differences() -> None:
    old, new = Config(), Config()
    new.train.steps, new.data.workers, new.inference.score_threshold = 7, 9, 0.1
    assert differences(old, new) == []
    new.optimizer.learning_rate = 1.0
    assert differences(old, new) == ["config.optimizer.learning_rate: 0.0001 there, 1.0 here"]


def test_flat_paths_are_those_of_the_command_line() -> None:
    flat = flatten(Config())
    assert flat["model.decoder.layers"] == 9
    assert flat["loss.costs.giou"] == 2.0
