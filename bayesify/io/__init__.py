"""Files: what is in one, from its bytes and never its name, and models and weights in and out, safely.

Nothing that is opened runs code from the file. `allow` names classes that may be built; it never lifts the restriction.
"""

from .factory import build_model, is_spec, parse_args
from .fit import fit
from .inputs import parse_inputs, read_inputs
from .pt2 import open_program
from .restricted import load_model
from .save import save
from .sniff import Sniffed, sniff
from .weights import Weights, read_weights

load = load_model

__all__ = [
    "Sniffed",
    "Weights",
    "build_model",
    "fit",
    "is_spec",
    "load",
    "load_model",
    "open_program",
    "parse_args",
    "parse_inputs",
    "read_inputs",
    "read_weights",
    "save",
    "sniff",
]
