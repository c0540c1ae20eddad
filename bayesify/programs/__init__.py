"""Programs: models that are a graph of operators, from torch.export or torch.fx."""

from .graph_module import again, find_root_products, hide_root_products
from .input_checks import check_inputs
from .part import FlipoutPart, Holder, LRTPart, Part, Ref, Step
from .program import rebuilt

__all__ = [
    "FlipoutPart",
    "Holder",
    "LRTPart",
    "Part",
    "Ref",
    "Step",
    "again",
    "check_inputs",
    "find_root_products",
    "hide_root_products",
    "rebuilt",
]
