"""Make the pictures of docs/pictures.md: contact sheets in each style, and an explanation.

    python docs/pictures.py --coco=datasets/coco --checkpoint=runs/quickstart

`--coco` is COCO 2017 in its official layout, or a part of it; the sheets take the first twelve images of val2017 whose
licence lets them be shown here, and their authors are listed in docs/images/ATTRIBUTION.md. `--checkpoint` is what
`make quickstart` trains.
"""

import argparse
import io
import json
import logging
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from maskdino_jax.checkpoints.weights import open_weights
from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data import Dataset, load_image, open_dataset
from maskdino_jax.inference.contact_sheet import contact_sheet
from maskdino_jax.inference.explain import Explainer
from maskdino_jax.inference.explain_picture import draw_explanation

STYLES = ("panoptic", "instance", "semantic", "detection")
COUNT = 12  # images of a sheet
FREE = {4, 5, 7}  # licences of COCO: Attribution, Attribution-ShareAlike, works of the United States government
LARGEST = 400_000  # bytes of a picture
QUALITIES = range(88, 40, -4)  # of JPEG
EXPLAINED = "val_tiles/002005_2.png"  # of the nuclei
ANNOTATIONS = "annotations/panoptic_val2017.json"
SAMPLES = Path(__file__).parent.parent / "maskdino_jax/data/samples/nuclei"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, help="folder of COCO 2017")
    parser.add_argument("--checkpoint", type=Path, help="workdir of make quickstart")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    nuclei(options.output)
    if options.coco:
        coco(options.coco, options.output)
    if options.checkpoint:
        explanation(options.checkpoint, options.output)


def nuclei(output: Path) -> None:
    """The sheet of the images that come along."""
    split = SplitConfig(images="val", annotations="annotations/panoptic_val.json", panoptic="panoptic_val")
    save(
        contact_sheet(open_dataset(DataConfig(val=split), "val"), COUNT, style="panoptic"), output / "sheet_nuclei.jpg"
    )


def coco(root: Path, output: Path) -> None:
    """A sheet for each style, and the list of authors."""
    split = SplitConfig(images="val2017", annotations=ANNOTATIONS, panoptic="panoptic_val2017")
    dataset = open_dataset(DataConfig(root=str(root), classes="coco_panoptic", val=split), "val")
    content = json.loads((root / ANNOTATIONS).read_text(encoding="utf-8"))
    images = {image["file_name"]: image for image in content["images"] if image.get("license") in FREE}
    records = [record for record in range(len(dataset)) if Path(dataset.file_name(record)).name in images][:COUNT]
    for style in STYLES:
        save(contact_sheet(dataset, COUNT, style=style, records=records), output / f"sheet_{style}.jpg")
    licences = {licence["id"]: licence for licence in content["licenses"]}
    (output / "ATTRIBUTION.md").write_text(attribution(dataset, records, images, licences), encoding="utf-8")


def attribution(dataset: Dataset, records: list[int], images: dict[str, dict], licences: dict[int, dict]) -> str:
    """Where the photographs come from, as their licences ask for."""
    rows = []
    for record in records:
        image = images[Path(dataset.file_name(record)).name]
        licence = licences[image["license"]]
        rows.append(f"| {image['file_name']} | [{licence['name']}]({licence['url']}) | {image['flickr_url']} |")
    head = (
        "# Attribution\n\nThe photographs in `sheet_*.jpg` are from COCO 2017 (https://cocodataset.org) and belong to "
        "their authors on\nFlickr; they are shown smaller, with COCO's annotations (CC BY 4.0) drawn over them. Sheets "
        "with photographs under\nShareAlike are under the same licence. `sheet_nuclei.jpg`, `nuclei.png`, "
        "`quickstart.png` and `explain.jpg` show images\nof BBBC038 (CC0).\n\n"
    )
    return head + "\n".join(["| file | licence | address |", "|---|---|---|", *rows]) + "\n"


def explanation(checkpoint: Path, output: Path) -> None:
    """What `--mode=explain` draws of one image."""
    weights = open_weights(checkpoint, None)
    variables = weights.load(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    image = load_image(SAMPLES / EXPLAINED)
    explained = Explainer(weights.spec, variables, weights.catalog, weights.config)(image)
    save(draw_explanation(image, explained), output / "explain.jpg")


def save(picture: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """The best JPEG that is small enough."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() < LARGEST:
            break
    path.write_bytes(buffer.getvalue())
    logging.info("%s: %d kB at quality %d", path, buffer.tell() // 1000, quality)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
