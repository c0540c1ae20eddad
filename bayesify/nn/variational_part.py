"""The products of a program, variational."""

from __future__ import annotations

from .part import Part
from .rerouted import FlipoutRerouted, LRTRerouted


class FlipoutPart(FlipoutRerouted, Part):
    """A part of a program under Flipout."""


class LRTPart(LRTRerouted, Part):
    """A part of a program under local reparameterization."""
