"""Programs: models that are a graph of operators, from torch.export or torch.fx."""

from .graph_module import again, find_root_products, hide_root_products
from .input_checks import check_inputs
from .kernel_checks import check_kernel
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
    "check_kernel",
    "find_root_products",
    "hide_root_products",
    "rebuilt",
]
