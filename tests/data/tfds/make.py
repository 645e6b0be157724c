"""Write `tfds.zip` anew: tiny data sets with the features of TFDS's own `coco` and `scene_parse150`.

    python tests/data/tfds/make.py

Needs tensorflow-datasets and tensorflow-cpu; the tests read what it wrote without TensorFlow. The images of COCO are
those of `tests/data/coco`, eight times smaller; the others are drawn here.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

HERE = Path(__file__).parent
COCO = HERE.parent / "coco"
CLASSES = HERE.parents[2] / "maskdino_jax/data/classes/coco_panoptic.json"
SCALE = 8
YEARS = {"train": "train2017", "validation": "val2017"}


class CocoConfig(tfds.core.BuilderConfig):
    def __init__(self, panoptic: bool, **kwargs: Any) -> None:
        super().__init__(version=tfds.core.Version("1.1.0"), **kwargs)
        self.panoptic = panoptic


class Coco(tfds.core.GeneratorBasedBuilder):
    """Five images of COCO, made small."""

    BUILDER_CONFIGS = (CocoConfig(False, name="2017"), CocoConfig(True, name="2017_panoptic"))

    def _info(self) -> tfds.core.DatasetInfo:
        panoptic = self.builder_config.panoptic
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": tf.int64,
        }
        objects = tfds.features.Sequence(
            {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(num_classes=133 if panoptic else 80),
                "is_crowd": np.bool_,
            }
        )
        if panoptic:
            features["panoptic_image"] = tfds.features.Image(encoding_format="png")
            features["panoptic_image/filename"] = tfds.features.Text()
        features["panoptic_objects" if panoptic else "objects"] = objects
        return described(self, features)

    def _split_generators(self, manager: Any) -> list[Any]:
        return [tfds.core.SplitGenerator(name=split, gen_kwargs={"year": year}) for split, year in YEARS.items()]

    def _generate_examples(self, year: str) -> Iterator[tuple[str, dict[str, Any]]]:
        panoptic = self.builder_config.panoptic
        kind, key = ("panoptic", "panoptic_objects") if panoptic else ("instances", "objects")
        content = json.loads((COCO / f"annotations/{kind}_{year}.json").read_text())
        classes = [c for c in json.loads(CLASSES.read_text())["categories"] if panoptic or c["isthing"]]
        names = {c["id"]: c["name"] for c in sorted(classes, key=lambda c: c["id"])}  # the order of the official files
        self.info.features[key]["label"].names = list(names.values())
        images = sorted(content["images"], key=lambda image: image["id"])[: 3 if year == "train2017" else 2]
        for place, image in enumerate(images):
            picture = smaller(Image.open(COCO / year / image["file_name"]).convert("RGB"), Image.Resampling.BILINEAR)
            own = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
            example = {"image": encoded(picture, "JPEG")}
            if panoptic:
                png = smaller(Image.open(COCO / f"panoptic_{year}" / own[0]["file_name"]), Image.Resampling.NEAREST)
                example |= {"panoptic_image": encoded(png, "PNG"), "panoptic_image/filename": own[0]["file_name"]}
                own = seen(own[0]["segments_info"], np.asarray(png))
            else:
                own = shrunk(own, picture.width / image["width"], picture.height / image["height"])
                own = own[: (4, 1, 0)[place]]  # one object and none are cases of their own
            own = [entry | {"iscrowd": 1} if (place, n) == (0, 1) else entry for n, entry in enumerate(own)]
            example |= {"image/filename": image["file_name"], "image/id": image["id"]}
            yield (
                image["file_name"],
                example
                | {
                    key: [
                        {
                            "id": entry["id"],
                            "area": int(entry["area"]),
                            "bbox": shares(entry["bbox"], picture),
                            "label": names[entry["category_id"]],
                            "is_crowd": bool(entry["iscrowd"]),
                        }
                        for entry in own
                    ]
                },
            )


class SceneParse150(tfds.core.GeneratorBasedBuilder):
    """Objects: red is the class, green the number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "annotation": tfds.features.Image(encoding_format="png"),
        }
        return described(self, features)

    def _split_generators(self, manager: Any) -> list[Any]:
        return [
            tfds.core.SplitGenerator(name=split, gen_kwargs={"count": n}) for split, n in (("train", 2), ("test", 1))
        ]

    def _generate_examples(self, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(count):
            ramp = np.indices((24, 32)).sum(0)[..., None] * 4 + np.array([0, 10, number])
            yield (
                str(number),
                {
                    "image": encoded(Image.fromarray(ramp.astype(np.uint8)), "JPEG"),
                    "annotation": encoded(Image.fromarray(self.annotation()), "PNG"),
                },
            )

    def annotation(self) -> np.ndarray:
        pixels = np.zeros((24, 32, 3), np.uint8)
        pixels[2:10, 3:12] = (1, 1, 0)
        pixels[12:20, 4:20] = (100, 2, 0)
        pixels[12:15, 24:30] = (100, 3, 0)
        return pixels


class LabelImages(SceneParse150):
    """Labels of ADE20K, 0 to 150."""

    def annotation(self) -> np.ndarray:
        labels = np.zeros((24, 32), np.uint8)
        labels[:12] = 3
        labels[12:, :20] = 150
        return labels


def described(builder: tfds.core.GeneratorBasedBuilder, features: dict[str, Any]) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder, description=type(builder).__doc__, features=tfds.features.FeaturesDict(features)
    )


def smaller(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    return image.resize((image.width // SCALE, image.height // SCALE), resample)


def encoded(image: Image.Image, kind: str) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind)
    stream.seek(0)
    return stream


def seen(segments: list[dict[str, Any]], png: np.ndarray) -> list[dict[str, Any]]:
    """The segments that are left in the smaller PNG, with their new areas and boxes."""
    ids = png.astype(int) @ [1, 256, 65536]
    kept = []
    for segment in segments:
        y, x = np.nonzero(ids == segment["id"])
        if len(y):
            box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            kept.append(segment | {"area": len(y), "bbox": box})
    return kept


def shrunk(annotations: list[dict[str, Any]], x: float, y: float) -> list[dict[str, Any]]:
    factors = np.array([x, y, x, y])
    return [entry | {"area": entry["area"] * x * y, "bbox": entry["bbox"] * factors} for entry in annotations]


def shares(box: Any, image: Image.Image) -> tfds.features.BBox:
    x, y, width, height = box
    return tfds.features.BBox(
        ymin=y / image.height,
        xmin=x / image.width,
        ymax=(y + height) / image.height,
        xmax=(x + width) / image.width,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for builder in (Coco(data_dir=folder, config="2017"), Coco(data_dir=folder, config="2017_panoptic")):
            builder.download_and_prepare(file_format="array_record")
        for kind in (SceneParse150, LabelImages):
            kind(data_dir=folder).download_and_prepare(file_format="array_record")
        with zipfile.ZipFile(HERE / "tfds.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder))


if __name__ == "__main__":
    main()
