"""Which plain layer class has which variational variants. A new layer is two classes in a family's file and a row.

From a class of the user's own its variants are derived. A pickle finds such a class by a name that holds the path of
the class that it was derived from: `Flipout/mypkg-layers/MyLinear`, in the package `bayesify.nn`, which asks
`by_saved_name` for it. So a file names classes only, and calls nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import UnregisteredLayerError, UsageError
from . import attention, conv, embedding, linear, recurrent
from .base import Variational
from .parametrized_weights import computed_names, computing_members, kind_before
from .rerouting import FlipoutRerouted, LRTRerouted, Rerouting, ReroutingEncoder
from .settings import Method

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
}

_PLAIN = {made: plain for plain, variants in _VARIANTS.items() for made in variants.values()}

DERIVED_IN = "bayesify.nn"  # the module that saved files name for derived classes
_REROUTING = "Rerouting"
_REROUTED = "Rerouted"  # ends the prefix of a class whose products are rerouted: it may have a variant, too
_DERIVED: dict[str, Any] = {}  # by their qualified names

_MULTIPLYING: dict[type[nn.Module], tuple[str, ...]] = {}


def enter(cls: type[nn.Module], variants: Variants) -> None:
    """Give `cls` its variational classes."""
    _VARIANTS[cls] = variants
    _PLAIN.update((variant, cls) for variant in variants.values())


def variant(cls: type[nn.Module], method: Method) -> type[Variational] | None:
    """The variational class for exactly `cls`, or None: subclasses have forwards of their own until registered."""
    return _VARIANTS.get(cls, {}).get(method)


def plain_class(cls: Any) -> type[nn.Module]:
    """The class that a variational or rerouting one came from.

    Raises:
        KeyError: it came from none.
    """
    derived_from = vars(cls).get("_plain")
    if derived_from is not None and not _parametrized_otherwise(cls, derived_from):
        return derived_from  # type: ignore[no-any-return]
    if not (derived_from or "__getstate__" in vars(cls)):
        return _PLAIN[cls]
    # a class for parametrizations, some of which were put on or taken off after conversion
    base = plain_class(cls.__bases__[0])
    return type(f"Parametrized{base.__name__}", (base,), computing_members(cls))


def rerouted(cls: type[nn.Module], method: Method) -> type[Variational]:
    """The variational class for one that multiplies by its own Parameters: `class FlipoutConv1D(Rerouted, Conv1D)`."""
    base = FlipoutRerouted if method == "flipout" else LRTRerouted
    made: type[Variational] = _made(f"{_PREFIXES[method]}Rerouted", cls, (base, cls), {})
    return made


def rerouting(cls: type[nn.Module]) -> type[Rerouting]:
    """The class for a module that multiplies by weights of its children."""
    base = ReroutingEncoder if issubclass(cls, nn.TransformerEncoder) else Rerouting
    made: type[Rerouting] = _made(_REROUTING, cls, (base, cls), {})
    return made


def converted_class(module: nn.Module, method: Method, weights: bool) -> type[Variational]:
    """What the module's class becomes; `weights`: because it multiplies by weights itself, or is multiplied by."""
    cls, kind = type(module), kind_before(module)
    known = None if weights else variant(kind, method)
    if known is None or kind is cls:
        return known or rerouted(cls, method)
    # torch makes a class for each module with parametrizations, which cannot be pickled. When it takes the last one
    # off, it gives the module the first base of that class
    members = {"__module__": __name__, "__doc__": f"A parametrized {known.__name__}.", "_plain": cls}
    return type(_PREFIXES[method] + cls.__name__, (known,), computing_members(cls) | members)


def _parametrized_otherwise(cls: type, derived_from: type) -> bool:
    """Whether the class that it was derived from is one that torch made for parametrizations, which have changed."""
    made_by_torch = derived_from.__name__.startswith("Parametrized") and "__getstate__" in vars(derived_from)
    return made_by_torch and computed_names(cls) != computed_names(derived_from)


def plain_classes() -> tuple[type[nn.Module], ...]:
    """Every class that can become variational."""
    return tuple(_VARIANTS)


def lazy_twin(cls: type[nn.Module]) -> type[nn.Module] | None:
    """nn.Linear → nn.LazyLinear, or None where a class has no lazy form."""
    twin = getattr(nn, f"Lazy{cls.__name__}", None)
    return twin if twin in _VARIANTS and getattr(twin, "cls_to_become", None) is cls else None


def variants_like(cls: type[nn.Module], like: type[nn.Module]) -> Variants:
    """The variational classes of `cls`, derived from those of its base `like`."""
    return {method: _derived(cls, base) for method, base in _VARIANTS[like].items()}


def enter_weights(cls: type[nn.Module], weights: str | Sequence[str]) -> None:
    """Note which Parameters a class multiplies by."""
    _MULTIPLYING[cls] = (weights,) if isinstance(weights, str) else tuple(weights)


def registered_weights(cls: type[nn.Module]) -> tuple[str, ...]:
    """The Parameters that a class was registered to multiply by."""
    return _MULTIPLYING.get(cls, ())


def _derived(cls: type[nn.Module], base: type[Variational]) -> type[Variational]:
    """`class FlipoutMyLinear(MyLinear, FlipoutLinear)`."""
    made: type[Variational] = _made(_PREFIXES[base.method], cls, (cls, base), _becomes(cls, base.method))
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


def origin(path: str) -> tuple[str, str] | None:
    """The module and the qualified name of the class that a derived one came from, if the path is one."""
    prefix, *parts = path.split("/")
    if prefix.removesuffix(_REROUTED) not in (*_PREFIXES.values(), _REROUTING) or len(parts) != 2:
        return None
    return parts[0].replace("-", "."), parts[1].replace("-", ".")


def by_saved_name(path: str) -> Any:
    """The derived class of this qualified name, made now if this process has not made it. Nothing is imported for it.

    Raises:
        AttributeError: it is not such a name.
        UnregisteredLayerError: the class that it came from is not imported or registered.
    """
    if path in _DERIVED:
        return _DERIVED[path]
    place = origin(path)
    if place is None:
        raise AttributeError(f"module {DERIVED_IN!r} has no attribute {path!r}")
    cls = _imported(*place)
    if cls is None:
        raise UnregisteredLayerError(
            f"{path!r} belongs to a layer class that is not imported or registered in this process"
        )
    return _under(path.partition("/")[0], cls)


def new_derived(prefix: str, cls: type[nn.Module]) -> nn.Module:
    """A bare instance of the class that is derived from `cls` under this prefix: its state comes with the pickle."""
    if prefix in _PREFIXES.values() and cls not in _VARIANTS:  # it was registered where the pickle was made
        like = next(base for base in cls.__mro__ if base in _VARIANTS)
        enter(cls, variants_like(cls, like))
    derived: Any = _under(prefix, cls)
    made: nn.Module = derived.__new__(derived)
    return made


def _under(prefix: str, cls: type[nn.Module]) -> type[nn.Module]:
    if prefix == _REROUTING:
        return rerouting(cls)
    method: Method = "flipout" if prefix.startswith("Flipout") else "lrt"
    derived = rerouted(cls, method) if prefix.endswith(_REROUTED) else variant(cls, method)
    if derived is None:
        raise UnregisteredLayerError(
            f"{cls.__name__} was registered where this was made, as {prefix}: bayesify.register it here too"
        )
    return derived


def _reduced_with_origin(layer: nn.Module, protocol: Any) -> Any:
    """cloudpickle sends a class of `__main__` by value: a worker that looks for the derived one by name has neither."""
    reduced: Any = nn.Module.__reduce_ex__(layer, protocol)
    cls: Any = type(layer)
    return new_derived, (cls.__qualname__.partition("/")[0], cls._plain), *reduced[2:]


def _made(prefix: str, cls: type[nn.Module], bases: tuple[type, ...], members: dict[str, Any]) -> Any:
    """`class FlipoutMyLinear(*bases)`: the same class whenever it is asked for again."""
    path = "/".join((prefix, cls.__module__.replace(".", "-"), cls.__qualname__.replace(".", "-")))
    known = _DERIVED.get(path)
    if known is not None and set(bases) <= set(known.__mro__):
        return known
    doc = f"{cls.__qualname__} under {prefix}."
    own = {"__module__": DERIVED_IN, "__qualname__": path, "__doc__": doc, "_plain": cls}
    if cls.__module__ == "__main__":
        own["__reduce_ex__"] = _reduced_with_origin
        torch.serialization.add_safe_globals([new_derived])
    # what only reroutes bears its class's name: libraries write it into their files
    name = cls.__name__ if prefix == _REROUTING else prefix.removesuffix(_REROUTED) + cls.__name__
    _DERIVED[path] = type(name, bases, own | members)
    torch.serialization.add_safe_globals([_DERIVED[path]])
    return _DERIVED[path]


def _imported(module: str, qualname: str) -> type[nn.Module] | None:
    thing: Any = sys.modules.get(module)
    for part in qualname.split("."):
        thing = getattr(thing, part, None)
    return thing if isinstance(thing, type) and issubclass(thing, nn.Module) else None
