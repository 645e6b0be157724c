"""Score saved predictions against saved ground truth: a table, and last one line of JSON.

    python -m maskdino_jax.evaluation.score --instances=instances_val2017.json --instances-predictions=results.json
    python -m maskdino_jax.evaluation.score --panoptic=panoptic_val2017.json --panoptic-predictions=predictions.json

The JSON has every metric as a fraction of one: bbox/AP, AP50, ..., segm/AP, ..., panoptic_seg/PQ, SQ, RQ, PQ_th, ...,
sem_seg/mIoU, ..., and those of each class, such as bbox/AP-person. What the ground truth does not define, such as the
AP of large objects where there are none, is -1; of classes it is left out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from maskdino_jax.evaluation.evaluate import metrics_table
from maskdino_jax.evaluation.precision import SUMMARY
from maskdino_jax.evaluation.saved import score_instances, score_panoptic

_PANOPTIC = tuple(f"panoptic_seg/{name}{group}" for group in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ"))
_SEMANTIC = tuple(f"sem_seg/{name}" for name in ("mIoU", "fwIoU", "mACC", "pACC"))


def main(arguments: Sequence[str]) -> None:
    """Score what the options name; a mistake ends with one line that says what to do."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for kind in ("instances", "panoptic"):
        given, predicted = (getattr(options, name) for name in (kind, f"{kind}_predictions"))
        if (given is None) != (predicted is None):
            parser.error(f"--{kind} and --{kind}-predictions belong together: give both.")
    if options.instances is None and options.panoptic is None:
        parser.error("there is nothing to score: give --instances and --instances-predictions, or those of --panoptic.")
    metrics, expected = {}, []
    try:
        if options.instances is not None:
            metrics |= score_instances(
                options.instances, options.instances_predictions, engine=options.engine, boundary=options.boundary
            )
            kinds = dict.fromkeys(name.partition("/")[0] for name in metrics)
            expected += [f"{kind}/{name}" for kind in kinds for name in SUMMARY]
        if options.panoptic is not None:
            folder = lambda path: path.with_suffix("")
            metrics |= score_panoptic(
                options.panoptic,
                options.panoptic_dir or folder(options.panoptic),
                options.panoptic_predictions,
                options.panoptic_predictions_dir or folder(options.panoptic_predictions),
            )
            expected += [*_PANOPTIC, *_SEMANTIC]
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write(metrics_table(metrics) + "\n\n")
    sys.stdout.write(json.dumps(dict.fromkeys(expected, -1.0) | metrics) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maskdino_jax.evaluation.score", description=__doc__.split("\n")[0])
    add = lambda name, text: parser.add_argument(f"--{name}", type=Path, help=text)
    add("instances", "Ground truth: a COCO instances JSON.")
    add("instances-predictions", "A COCO result file: masks, boxes or both.")
    add("panoptic", "Ground truth: a COCO panoptic JSON.")
    add("panoptic-predictions", "Predictions in the same format.")
    add("panoptic-dir", "Folder of the PNG of --panoptic (default: its path without .json).")
    add("panoptic-predictions-dir", "Folder of the PNG of --panoptic-predictions (default: its path without .json).")
    parser.add_argument("--engine", choices=("fast", "pycocotools"), default="fast", help="For average precision.")
    parser.add_argument("--boundary", action="store_true", help="Average precision of the outlines of masks besides.")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
