"""Which plain layer class has which variational variants. A new layer is two classes in a family's file and a row."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import UsageError
from . import attention, conv, embedding, linear, recurrent, registered
from .computed import kind_before
from .part import Part
from .rerouted import FlipoutRerouted, LRTRerouted, Rerouting
from .settings import Method
from .variational import Variational
from .variational_part import FlipoutPart, LRTPart

Variants = dict[Method, type[Variational]]

_PREFIXES: dict[Method, str] = {"flipout": "Flipout", "lrt": "LRT"}

_VARIANTS: dict[type[nn.Module], Variants] = {
    nn.Linear: {"flipout": linear.FlipoutLinear, "lrt": linear.LRTLinear},
    nn.LazyLinear: {"flipout": linear.LazyFlipoutLinear, "lrt": linear.LazyLRTLinear},
    nn.MultiheadAttention: {
        "flipout": attention.FlipoutMultiheadAttention,
        "lrt": attention.LRTMultiheadAttention,
    },
    NonDynamicallyQuantizableLinear: {
        "flipout": attention.FlipoutOutProjection,
        "lrt": attention.LRTOutProjection,
    },
    nn.Bilinear: {"flipout": linear.FlipoutBilinear, "lrt": linear.LRTBilinear},
    nn.RNN: {"flipout": recurrent.FlipoutRNN, "lrt": recurrent.LRTRNN},
    nn.LSTM: {"flipout": recurrent.FlipoutLSTM, "lrt": recurrent.LRTLSTM},
    nn.GRU: {"flipout": recurrent.FlipoutGRU, "lrt": recurrent.LRTGRU},
    nn.RNNCell: {"flipout": recurrent.FlipoutRNNCell, "lrt": recurrent.LRTRNNCell},
    nn.LSTMCell: {"flipout": recurrent.FlipoutLSTMCell, "lrt": recurrent.LRTLSTMCell},
    nn.GRUCell: {"flipout": recurrent.FlipoutGRUCell, "lrt": recurrent.LRTGRUCell},
    nn.Embedding: {"flipout": embedding.FlipoutEmbedding, "lrt": embedding.LRTEmbedding},
    nn.EmbeddingBag: {"flipout": embedding.FlipoutEmbeddingBag, "lrt": embedding.LRTEmbeddingBag},
    nn.Conv1d: {"flipout": conv.FlipoutConv1d, "lrt": conv.LRTConv1d},
    nn.LazyConv1d: {"flipout": conv.LazyFlipoutConv1d, "lrt": conv.LazyLRTConv1d},
    nn.Conv2d: {"flipout": conv.FlipoutConv2d, "lrt": conv.LRTConv2d},
    nn.LazyConv2d: {"flipout": conv.LazyFlipoutConv2d, "lrt": conv.LazyLRTConv2d},
    nn.Conv3d: {"flipout": conv.FlipoutConv3d, "lrt": conv.LRTConv3d},
    nn.LazyConv3d: {"flipout": conv.LazyFlipoutConv3d, "lrt": conv.LazyLRTConv3d},
    nn.ConvTranspose1d: {"flipout": conv.FlipoutConvTranspose1d, "lrt": conv.LRTConvTranspose1d},
    nn.LazyConvTranspose1d: {"flipout": conv.LazyFlipoutConvTranspose1d, "lrt": conv.LazyLRTConvTranspose1d},
    nn.ConvTranspose2d: {"flipout": conv.FlipoutConvTranspose2d, "lrt": conv.LRTConvTranspose2d},
    nn.LazyConvTranspose2d: {"flipout": conv.LazyFlipoutConvTranspose2d, "lrt": conv.LazyLRTConvTranspose2d},
    nn.ConvTranspose3d: {"flipout": conv.FlipoutConvTranspose3d, "lrt": conv.LRTConvTranspose3d},
    nn.LazyConvTranspose3d: {"flipout": conv.LazyFlipoutConvTranspose3d, "lrt": conv.LazyLRTConvTranspose3d},
    Part: {"flipout": FlipoutPart, "lrt": LRTPart},
}

_PLAIN = {made: plain for plain, variants in _VARIANTS.items() for made in variants.values()}

_MULTIPLYING: dict[type[nn.Module], tuple[str, ...]] = {}


def variant(cls: type[nn.Module], method: Method) -> type[Variational] | None:
    """The variational class for exactly `cls`, or None: subclasses have forwards of their own until registered."""
    return _VARIANTS.get(cls, {}).get(method)


def plain_class(cls: Any) -> type[nn.Module]:
    """The class that a variational or rerouting one came from.

    Raises:
        KeyError: it came from none.
    """
    derived_from = vars(cls).get("_plain")
    return derived_from or _PLAIN[cls]


def rerouted(cls: type[nn.Module], method: Method) -> type[Variational]:
    """The variational class for one that multiplies by its own Parameters: `class FlipoutConv1D(Rerouted, Conv1D)`."""
    base = FlipoutRerouted if method == "flipout" else LRTRerouted
    made: type[Variational] = registered.derived(f"{_PREFIXES[method]}Rerouted", cls, (base, cls), {})
    return made


def rerouting(cls: type[nn.Module]) -> type[Rerouting]:
    """The class for a module that multiplies by weights of its children."""
    made: type[Rerouting] = registered.derived(registered.REROUTING, cls, (Rerouting, cls), {})
    return made


def converted_class(module: nn.Module, method: Method, weights: bool) -> type[Variational]:
    """What the module's class becomes; `weights`: because it multiplies by weights itself, or is multiplied by."""
    cls, kind = type(module), kind_before(module)
    known = None if weights else variant(kind, method)
    if known is None or kind is cls:
        return known or rerouted(cls, method)
    # torch makes a class for each module with parametrizations, which cannot be pickled
    members = {"__module__": __name__, "__doc__": f"A parametrized {known.__name__}.", "_plain": cls}
    return type(_PREFIXES[method] + cls.__name__, (cls, known), members)


def plain_classes() -> tuple[type[nn.Module], ...]:
    """Every class that can become variational."""
    return tuple(_VARIANTS)


def lazy_twin(cls: type[nn.Module]) -> type[nn.Module] | None:
    """nn.Linear → nn.LazyLinear, or None where a class has no lazy form."""
    twin = getattr(nn, f"Lazy{cls.__name__}", None)
    return twin if twin in _VARIANTS and getattr(twin, "cls_to_become", None) is cls else None


def register(
    cls: type[nn.Module], like: type[nn.Module] = nn.Linear, *, weights: Sequence[str] = ()
) -> type[nn.Module]:
    """Support a layer class of one's own, under both methods; most classes that multiply by Parameters need no call.

    A subclass of `like` whose forward is `like`'s, or calls it by `super()`, becomes what `like` becomes. With
    `weights`, the names of Parameters, any class whose forward torch.fx cannot trace: it must do nothing with them but
    multiply by them in torch's functions (F.linear, matmul, einsum, F.conv2d, ...), or it raises where it does.

    Returns `cls`, so that it also decorates. Call it before converting, and before loading what was converted.

    Raises:
        UsageError: `like` has no variants, `cls` is no subclass of it, or its forward reads the weight itself.
    """
    if weights:
        _MULTIPLYING[cls] = (weights,) if isinstance(weights, str) else tuple(weights)
        return cls
    if like not in _VARIANTS:
        raise UsageError(f"like={like.__name__} has no variational variants: choose one such as nn.Linear, nn.Conv2d")
    if not issubclass(cls, like):
        raise UsageError(f"{cls.__name__} is no subclass of {like.__name__}, so that it cannot be registered like it")
    if cls is not like and not forwards_to(cls, like):
        raise UsageError(
            f"{cls.__name__}.forward does not call super().forward, or reads the weight too: noise would bypass it. "
            "If it only multiplies by its weight, it converts without being registered"
        )
    if cls not in _VARIANTS:
        _VARIANTS[cls] = {method: _derived(cls, base) for method, base in _VARIANTS[like].items()}
    return cls


def registered_weights(cls: type[nn.Module]) -> tuple[str, ...]:
    """The Parameters that a class was registered to multiply by."""
    return _MULTIPLYING.get(cls, ())


def forwards_to(cls: type[nn.Module], like: type[nn.Module]) -> bool:
    """Whether every forward between `cls` and `like` reaches the weight through `super().forward` only."""
    between = cls.__mro__[: cls.__mro__.index(like)]
    forwards = [base.__dict__["forward"] for base in between if "forward" in base.__dict__]
    helpers = any("_conv_forward" in base.__dict__ for base in between)
    return not helpers and all(_calls_super(forward) for forward in forwards)


def _calls_super(forward: object) -> bool:
    code = getattr(inspect.unwrap(forward), "__code__", None) if callable(forward) else None
    if code is None or not {"super", "forward"} <= {*code.co_names}:
        return False
    steps = [*dis.get_instructions(code)]
    reads = [at for at, step in enumerate(steps) if str(step.argval).startswith(_HOLDING) and "ATTR" in step.opname]
    return all(steps[at + 1].argval in ("dtype", "device", "shape") for at in reads)


_HOLDING = ("weight", "bias", "_flat_weights", "all_weights")  # names of what holds weights


def _derived(cls: type[nn.Module], base: type[Variational]) -> type[Variational]:
    """`class FlipoutMyLinear(MyLinear, FlipoutLinear)`."""
    made: type[Variational] = registered.derived(_PREFIXES[base.method], cls, (cls, base), _becomes(cls, base.method))
    return made


def _becomes(cls: type[nn.Module], method: Method) -> dict[str, type[Variational]]:
    """A lazy class turns into another at its first batch: into that one's variant, or the noise would be lost there."""
    if not issubclass(cls, LazyModuleMixin):
        return {}
    plain: Any = cls.cls_to_become
    target = variant(plain, method)
    if target is None:
        raise UsageError(f"{cls.__name__} becomes {plain.__name__} at its first batch: register that class first")
    return {"cls_to_become": target}
