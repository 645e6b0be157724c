"""Find things with an exported model, without the package it comes from: onnxruntime, numpy and pillow do.

python run_onnx.py model.onnx image.jpg
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

onnxruntime.set_default_logger_severity(3)  # it warns of every constant that it has no use for
session, card = onnxruntime.InferenceSession(sys.argv[1]), json.loads(Path(f"{sys.argv[1]}.json").read_text())
image = Image.open(sys.argv[2]).convert("RGB")
short, long, (height, width) = card["resize"]["short_side"], card["resize"]["long_side"], card["canvas"]
scale = min(short / min(image.size), long / max(image.size), height / image.height, width / image.width)
w, h = (max(round(side * scale), 1) for side in image.size)
canvas = np.zeros((1, height, width, 3), np.uint8)
canvas[0, :h, :w] = image.resize((w, h), Image.Resampling.BILINEAR)
names, inputs = [output.name for output in session.get_outputs()], {"images": canvas, "sizes": np.int32([[h, w]])}
found = {name: rows[0] for name, rows in zip(names, session.run(names, inputs), strict=True)}
for score, label, query in zip(found["scores"], found["labels"], found["queries"], strict=True):
    thing = card["classes"][label]
    if score >= card["thresholds"]["score_threshold"] and thing["is_thing"]:
        box = (found["boxes"][query] * np.tile(image.size, 2)).round(1).tolist()
        logits = Image.fromarray(found["masks"][query])  # one for 4 x 4 pixels of the canvas
        mask = logits.resize(image.size, Image.Resampling.BILINEAR, (0, 0, w / 4, h / 4))
        print(f"{thing['name']} {score:.3f} box {box} mask of {np.sum(np.asarray(mask) > 0)} pixels")
