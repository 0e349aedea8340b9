"""Lets torchvision be imported beside a CPU build of torch; to be imported before whatever imports it.

PyPI's torchvision is built against CUDA. Beside a CPU build of torch its own library does not load, and the
import ends with `operator torchvision::nms does not exist`. Declaring that operator and its twin, which
nobody here calls, lets it end well. Where the library loads, nothing is declared.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
