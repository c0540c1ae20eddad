"""Stand-alone variational layers, each with the signature of the torch.nn layer that its name ends in.

    FlipoutConv2d(3, 64, 3, padding=1)            LazyLRTLinear(10)

What is imported here under its own name again is no layer: saved files name it as a member of this package.
"""

from typing import TYPE_CHECKING

from .attention import (
    FlipoutMultiheadAttention,
    LRTMultiheadAttention,
)
from .attention import (
    FlipoutOutProjection as FlipoutOutProjection,
)
from .attention import (
    LRTOutProjection as LRTOutProjection,
)
from .base import LRT, Flipout, Variational
from .conv import (
    FlipoutConv1d,
    FlipoutConv2d,
    FlipoutConv3d,
    FlipoutConvTranspose1d,
    FlipoutConvTranspose2d,
    FlipoutConvTranspose3d,
    LazyFlipoutConv1d,
    LazyFlipoutConv2d,
    LazyFlipoutConv3d,
    LazyFlipoutConvTranspose1d,
    LazyFlipoutConvTranspose2d,
    LazyFlipoutConvTranspose3d,
    LazyLRTConv1d,
    LazyLRTConv2d,
    LazyLRTConv3d,
    LazyLRTConvTranspose1d,
    LazyLRTConvTranspose2d,
    LazyLRTConvTranspose3d,
    LRTConv1d,
    LRTConv2d,
    LRTConv3d,
    LRTConvTranspose1d,
    LRTConvTranspose2d,
    LRTConvTranspose3d,
)
from .embedding import FlipoutEmbedding, FlipoutEmbeddingBag, LRTEmbedding, LRTEmbeddingBag
from .hooks import (
    forget_examples as forget_examples,
)
from .hooks import (
    keep_unfused as keep_unfused,
)
from .hooks import (
    mark_reached as mark_reached,
)
from .hooks import (
    tell_examples as tell_examples,
)
from .kl import Ledger as Ledger
from .linear import FlipoutBilinear, FlipoutLinear, LazyFlipoutLinear, LazyLRTLinear, LRTBilinear, LRTLinear
from .posterior_tensors import LazyBuffer as LazyBuffer
from .recurrent import (
    LRTGRU,
    LRTLSTM,
    LRTRNN,
    FlipoutGRU,
    FlipoutGRUCell,
    FlipoutLSTM,
    FlipoutLSTMCell,
    FlipoutRNN,
    FlipoutRNNCell,
    LRTGRUCell,
    LRTLSTMCell,
    LRTRNNCell,
)
from .settings import Settings

if not TYPE_CHECKING:
    from .registry import by_saved_name as __getattr__  # noqa: F401  (pickles look for derived classes here)

__all__ = [
    "LRT",
    "LRTGRU",
    "LRTLSTM",
    "LRTRNN",
    "Flipout",
    "FlipoutBilinear",
    "FlipoutConv1d",
    "FlipoutConv2d",
    "FlipoutConv3d",
    "FlipoutConvTranspose1d",
    "FlipoutConvTranspose2d",
    "FlipoutConvTranspose3d",
    "FlipoutEmbedding",
    "FlipoutEmbeddingBag",
    "FlipoutGRU",
    "FlipoutGRUCell",
    "FlipoutLSTM",
    "FlipoutLSTMCell",
    "FlipoutLinear",
    "FlipoutMultiheadAttention",
    "FlipoutRNN",
    "FlipoutRNNCell",
    "LRTBilinear",
    "LRTConv1d",
    "LRTConv2d",
    "LRTConv3d",
    "LRTConvTranspose1d",
    "LRTConvTranspose2d",
    "LRTConvTranspose3d",
    "LRTEmbedding",
    "LRTEmbeddingBag",
    "LRTGRUCell",
    "LRTLSTMCell",
    "LRTLinear",
    "LRTMultiheadAttention",
    "LRTRNNCell",
    "LazyFlipoutConv1d",
    "LazyFlipoutConv2d",
    "LazyFlipoutConv3d",
    "LazyFlipoutConvTranspose1d",
    "LazyFlipoutConvTranspose2d",
    "LazyFlipoutConvTranspose3d",
    "LazyFlipoutLinear",
    "LazyLRTConv1d",
    "LazyLRTConv2d",
    "LazyLRTConv3d",
    "LazyLRTConvTranspose1d",
    "LazyLRTConvTranspose2d",
    "LazyLRTConvTranspose3d",
    "LazyLRTLinear",
    "Settings",
    "Variational",
]
