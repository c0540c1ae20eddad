"""Stand-alone variational layers, each with the signature of the torch.nn layer that its name ends in.

    FlipoutConv2d(3, 64, 3, padding=1)            LazyLRTLinear(10)

Each family's file lists its layers. What is imported here under its own name again is not a layer: saved files name it
as a member of this package.
"""

from typing import TYPE_CHECKING

from . import attention, conv, embedding, linear, recurrent
from .attention import *  # noqa: F403
from .attention import FlipoutOutProjection as FlipoutOutProjection
from .attention import LRTOutProjection as LRTOutProjection
from .base import LRT, Flipout, Variational
from .conv import *  # noqa: F403
from .embedding import *  # noqa: F403
from .hooks import forget_examples as forget_examples
from .hooks import keep_unfused as keep_unfused
from .hooks import mark_reached as mark_reached
from .hooks import tell_examples as tell_examples
from .kl import Ledger as Ledger
from .linear import *  # noqa: F403
from .posterior_tensors import LazyBuffer as LazyBuffer
from .recurrent import *  # noqa: F403
from .settings import Settings
from .watched_forwards import begin_watch as begin_watch
from .watched_forwards import end_watch as end_watch

if not TYPE_CHECKING:
    from .registry import by_saved_name as __getattr__  # noqa: F401  (pickles look for derived classes here)

__all__ = ["LRT", "Flipout", "Settings", "Variational"]
__all__ += attention.__all__
__all__ += conv.__all__
__all__ += embedding.__all__
__all__ += linear.__all__
__all__ += recurrent.__all__
