"""Prints the tables of docs/parity.md.

python -m tests.parity.report                     # float32, the recordings in tests/golden
python -m tests.parity.report --recordings=DIR    # float32, other recordings: DIR/NAME_eval_*.npz
python -m tests.parity.report --precision         # bfloat16, and what each choice of type costs
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.parity import stages
from tests.parity.official import Recording
from tests.parity.postprocessing import instance_errors, results
from tests.parity.precision import BFLOAT16, FLOAT32, Change

_GOLDEN = Path(__file__).parents[1] / "golden"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def _worst(errors: dict[str, float]) -> str:
    return f"{max(errors.values()):.1e}" if errors else "-"


def _float32(folder: Path) -> str:
    """Largest error of each stage of each model, and how results differ."""
    files = sorted(folder.glob("*/eval_*.npz")) or sorted(folder.glob("*_eval_*.npz"))
    names = {}
    for file in files:
        name = file.parent.name if file.name.startswith("eval_") else re.sub(r"_eval_.*", "", file.name)
        names.setdefault(name, []).append(file)
    columns = []
    for name, parts in names.items():
        recording = Recording.load(name, parts)
        found, outputs = stages.run(recording)
        column = [_worst(stages.errors(found, recording.arrays, stage)) for stage in stages.STAGES]
        columns.append([name, *column, *_flips(recording, outputs)])
    labels = ["", *stages.STAGES, "instance scores", "flipped pixels: instances", "panoptic", "semantic"]
    head, *rows = zip(labels, *columns, strict=True)
    return _table(head, rows)


def _flips(recording: Recording, outputs: stages.Outputs) -> list[str]:
    """Largest difference of instance scores; pixels that differ in instances, panoptic and semantic maps."""
    instances, panoptic, semantic = [], [], []
    for i, found in enumerate(results(recording, outputs, recording.config())):
        if found.instances is not None:
            instances.append(instance_errors(found, recording.part(f"post{i}/instances/")))
        if found.panoptic is not None:
            panoptic.append((found.panoptic.ids != recording.arrays[f"post{i}/panoptic/seg"]).sum())
        if found.semantic is not None:
            semantic.append((found.semantic != recording.arrays[f"post{i}/sem_seg_argmax"]).sum())
    scores = f"{max(errors.scores for errors in instances):.1e}" if instances else "-"
    count = lambda values: str(sum(values)) if values else "-"
    return [scores, count([errors.flipped for errors in instances]), count(panoptic), count(semantic)]


def _precision() -> str:
    """Errors of bfloat16 with the shipped choice of types, and with each candidate in its place."""
    recording = Recording.load("instance_r50", sorted((_GOLDEN / "instance_r50").glob("eval_*.npz")))
    start, _ = stages.run(recording)
    found = stages.run_bfloat16(recording, start)
    rows = [
        [
            stage,
            *(_worst(measure(found, start, stage)) for measure in (stages.typical_errors, stages.errors)),
        ]
        for stage in stages.STAGES
    ]
    text = _table(["stage", "root mean square", "largest"], rows)
    rows = [_candidate("as shipped", recording, start, lambda model: None)]
    for kind, candidates in (("bfloat16", BFLOAT16), ("float32", FLOAT32)):
        rows += [_candidate(f"{name} in {kind}", recording, start, change) for name, change in candidates.items()]
    return text + _table(["", *_SUMMARY, "box", "score"], rows)


_SUMMARY = {  # column -> stage, array
    "backbone": ("backbone", "backbone/res5"),
    "encoder": ("encoder layers", "pixel/enc_layer5"),
    "mask features": ("mask features", "pixel/mask_features"),
    "selection scores": ("selection scores", "enc/score"),
    "decoder": ("decoder layers", "decoder/layer8"),
    "class logits": ("class logits", "out/logits9"),
    "mask logits": ("mask logits", "out/masks9"),
}


def _candidate(name: str, recording: Recording, start: dict[str, np.ndarray], change: Change) -> list[str]:
    """Root mean square errors of some stages, largest error of a side of a box and of a class score."""
    found = stages.run_bfloat16(recording, start, change)
    row = [f"{stages.typical_errors(found, start, stage)[array]:.1e}" for stage, array in _SUMMARY.values()]
    boxes = np.abs(found["out/boxes9"] - start["out/boxes9"]).max()
    return [name, *row, f"{boxes:.3f}", f"{stages.score_error(found, start):.3f}"]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, default=_GOLDEN, help="folder of recordings")
    parser.add_argument("--precision", action="store_true", help="bfloat16 instead of float32")
    arguments = parser.parse_args()
    sys.stdout.write(_precision() if arguments.precision else _float32(arguments.recordings))


if __name__ == "__main__":
    _main()
