"""torchvision's detectors, tiny: lists of images in, losses or boxes out, rows that depend on the data between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify

IMAGES = [torch.rand(3, 64, 64) for _ in range(2)]
TARGETS = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in IMAGES]


def detector(vision: Any, kind: str) -> Any:
    """One of torchvision's, on a backbone of one layer."""
    from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    backbone: Any = nn.Sequential(nn.Conv2d(3, 32, 3, stride=8, padding=1), nn.ReLU())
    backbone.out_channels = 32
    size = {"min_size": 64, "max_size": 64}
    if kind == "FCOS":
        return FCOS(backbone, 3, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), **size)
    anchors = AnchorGenerator(((16, 32),), ((1.0,),))
    if kind == "RetinaNet":
        return RetinaNet(backbone, 3, anchor_generator=anchors, **size)
    if not hasattr(torch.ops.torchvision, "roi_align"):
        pytest.skip("torchvision's compiled operators are not there")
    pool = vision.ops.MultiScaleRoIAlign(["0"], 3, 1)
    return FasterRCNN(backbone, 3, rpn_anchor_generator=anchors, box_roi_pool=pool, **size)


@pytest.mark.parametrize(("kind", "method"), [("FCOS", "flipout"), ("RetinaNet", "lrt"), ("FasterRCNN", "flipout")])
def test_detectors_train(vision: Any, kind: str, method: Any) -> None:
    torch.manual_seed(0)
    plain = detector(vision, kind)
    model = bayesify.convert(plain, method)
    bayesify.set_posterior_std(model, 0.05)
    assert {row.verb for row in bayesify.plan(plain).rows} <= {"converts", "keeps"}
    with bayesify.posterior_mean(model):
        assert losses(model) == losses(plain)
    assert losses(model) != losses(plain)
    sum(model(IMAGES, TARGETS).values()).backward()
    scales = {name: value.grad for name, value in model.named_parameters() if name.endswith("_rho")}
    assert [name for name, grad in scales.items() if grad is None or not grad.any()] == []


def losses(model: Any) -> dict[str, float]:
    torch.manual_seed(1)  # anchors are sampled
    found: dict[str, Tensor] = model(IMAGES, TARGETS)
    return {name: loss.item() for name, loss in found.items()}


def test_a_list_of_images_is_the_batch(vision: Any) -> None:
    model: Any = bayesify.convert(detector(vision, "FasterRCNN"), example_inputs=(IMAGES,))
    for count in (1, 3):
        boxes = model.eval()([torch.rand(3, 64, 64) for _ in range(count)])
        assert len(boxes) == count
