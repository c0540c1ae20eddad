"""Why a layer must stay as it is: one small function per reason, each a sentence that a person understands, or None."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from .graph import Census, reached_names, reads_without_calling
from .nn.part import Part, kind_of
from .nn.registry import forwards_to, plain_classes
from .nn.state import added_names, bias_names, bias_slots, weight_names, weight_slots
from .nn.variational import Flipout, Variational

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_ALWAYS_USED = {"forward", "__call__", "__getattr__", "__getattribute__", "__setattr__", "weight", "bias"}
_COMPUTED = {
    "weight_mask": "pruned by torch.nn.utils.prune: prune.remove(layer, 'weight') makes it plain",
    "weight_g": "computed by the old weight_norm: torch.nn.utils.remove_weight_norm(layer) makes it plain",
    "weight_u": "computed by the old spectral_norm: torch.nn.utils.remove_spectral_norm(layer) makes it plain",
}


@dataclass(frozen=True)
class Site:
    """One module that bears a weight, and where it stands.

    Attributes:
        module: the module.
        name: its canonical dotted name, "" for the root.
        parents: (name, module) of all its ancestors, root first; of a module with aliases, those of every alias.
    """

    module: nn.Module
    name: str
    parents: tuple[tuple[str, nn.Module], ...] = ()

    @property
    def attention(self) -> nn.MultiheadAttention | None:
        """The attention whose `out_proj` this is: plain, it reads its weight; variational, it calls it."""
        found = (each for _, each in self.parents if type(each) is nn.MultiheadAttention)
        return next((each for each in found if each.out_proj is self.module), None)


def blocker(site: Site, census: Census | None = None) -> str | None:
    """The first reason why this layer cannot become variational, or None.

    None also for modules without a weight matrix, such as norms: `kept_because` has the sentence for those.
    """
    if "exported_problems" in vars(site.module) and not isinstance(site.module, Part):
        return exported(site.module)
    reason = scripted(site.module) or inside_adapter(site) or read_by_parent(site, census) or quantized(site.module)
    if reason or type(site.module) not in plain_classes():
        return reason or parametrized(site.module) or known_kind(site.module) or foreign_class(site.module)
    found = (find(site.module) for find in (computed, tensor_type, number_type, name_clash, replaced_method))
    return next(filter(None, found), None)


def bears_weight(module: nn.Module) -> bool:
    """Whether the module itself holds or computes a weight: each such module has a row in the plan."""
    if any(True for _ in module.parameters(recurse=False)) or parametrize.is_parametrized(module):
        return True
    return isinstance(vars(module).get("weight"), torch.Tensor) or quantized(module) is not None


def kept_because(module: nn.Module) -> str:
    """Why a module that bears a weight and that nothing blocks is kept all the same: it has no matrix."""
    return f"{_title(kind_of(module))} has no weight matrix"


def exported(module: nn.Module) -> str | None:
    """What is left of a module in an exported program: matrices that its graph uses in another way than multiplying."""
    return "; ".join(f"{name}: {why}" for name, why in vars(module)["exported_problems"].items()) or None


def scripted(module: nn.Module) -> str | None:
    """TorchScript runs code of its own, whatever the Python class says."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module, whose code is fixed: convert the Python model that it was made from"
    return None


def inside_adapter(site: Site) -> str | None:
    """A layer that peft wraps: its base weight is merged and unmerged behind the layer's back."""
    for name, module in (*site.parents, (site.name, site.module)):
        if "base_layer" in module._modules and hasattr(type(module), "adapter_layer_names"):
            where = name or "the model"
            return f"it is inside the peft adapter {where} ({_title(type(module))}): model.merge_and_unload() first"
    return None


def read_by_parent(site: Site, census: Census | None = None) -> str | None:
    """A layer that is never called: something reads its weight and computes with that, past any noise."""
    if site.attention is not None or (census is not None and site.name in census.calls):
        return None
    if census is not None and site.name in census.reads:
        return f"its weight is read without calling it, at {census.reads[site.name]}: noise in it would never be seen"
    for name, parent in site.parents:
        paths = {key for key, child in parent.named_children() if child is site.module}
        prefix = f"{name}." if name else ""
        paths |= {site.name.removeprefix(prefix)} if site.name.startswith(prefix) else set()
        if any(reads_without_calling(parent, path) for path in paths):
            return f"{_title(type(parent))} reads its weight without calling it: noise in it would never be seen"
    return None


def quantized(module: nn.Module) -> str | None:
    """torch.ao's quantized layers, which hold packed integers or fake-quantize in their forward."""
    if any(base.__module__.startswith("torch.ao.nn.") for base in type(module).__mro__):
        return f"{_title(type(module))} is a quantized layer: convert the float model, before quantizing it"
    return None


def parametrized(module: nn.Module) -> str | None:
    """torch.nn.utils.parametrize: the weight is a function of other Parameters."""
    if isinstance(module, parametrize.ParametrizationList):
        return "it holds what a parametrization computes its layer's weight from"
    if parametrize.is_parametrized(module):
        names = sorted(getattr(module, "parametrizations", {}))
        remove = "torch.nn.utils.parametrize.remove_parametrizations(layer, name)"
        return f"its {_listed(names)} is computed by a parametrization: {remove} makes it plain"
    return None


def known_kind(module: nn.Module) -> str | None:
    """Kinds of layers with weight matrices that have no variational form here."""
    title = _title(type(module))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return f"{title} looks rows up instead of multiplying: it has no variational form yet"
    # By name: transformers need not be there.
    if "transformers.pytorch_utils.Conv1D" in {f"{base.__module__}.{base.__name__}" for base in type(module).__mro__}:
        return f"{title} of transformers is a linear layer with its weight transposed: it has no variational form yet"
    return None


def foreign_class(module: nn.Module) -> str | None:
    """A class that is not in the registry: a subclass of one that is, or any module with matrices of its own."""
    cls = type(module)
    base = next((each for each in cls.__mro__ if each in plain_classes()), None)
    if base is not None:
        return _subclass(cls, base)
    if isinstance(module, _NORMS):
        return None
    own = [(name, value) for name, value in module.named_parameters(recurse=False)]
    matrices = [name for name, value in own if not isinstance(value, UninitializedParameter) and value.dim() > 1]
    if not matrices:
        return None
    return f"it holds {_listed(matrices)} itself, and what its forward does with that is not known to bayesify"


def _subclass(cls: type, base: type) -> str:
    used = _ALWAYS_USED | reached_names(base)
    changed = sorted(name for name in used if getattr(cls, name, None) is not getattr(base, name, None))
    title, parent = _title(cls), _title(base)
    if changed == ["forward"] and forwards_to(cls, base):
        return (
            f"{title} is a subclass of {parent} whose forward calls {parent}'s: "
            f"bayesify.register({cls.__name__}, like={parent}) converts it"
        )
    if "forward" in changed:
        return f"{title} is a subclass of {parent} with a forward of its own, which bayesify does not know"
    if changed:
        return f"{title} is a subclass of {parent} that overrides {_listed(changed)}, which {parent}'s forward uses"
    return (
        f"{title} is a subclass of {parent} and inherits its forward unchanged: "
        f"bayesify.register({cls.__name__}, like={parent}) converts it"
    )


def computed(module: nn.Module) -> str | None:
    """Weight normalization and pruning of the old kind: the class is plain, but the weight is no Parameter."""
    if isinstance(module, nn.MultiheadAttention):
        return None if weight_names(module) else "its projections are no Parameters of the layer"
    biases = bias_slots(module)
    for name in (*weight_slots(module), *biases):
        if name in module._parameters and (name in biases or module._parameters[name] is not None):
            continue
        marks = (why for mark, why in _COMPUTED.items() if hasattr(module, mark.replace("weight", name)))
        why = next(marks, "no Parameter of the layer").replace("'weight'", repr(name))
        return f"its {name} is {why if name == 'weight' else why.replace('_norm(layer)', f'_norm(layer, {name!r})')}"
    return None


def tensor_type(module: nn.Module) -> str | None:
    """Quantized, sharded or otherwise packed weights behind a plain layer."""
    for name, value in module.named_parameters(recurse=False):
        if name in (*weight_names(module), *bias_names(module)) and type(value) not in (nn.Parameter, UninitializedParameter):
            return f"its {name} is a {type(value).__name__}: convert before quantizing, sharding or distributing it"
    return None


def number_type(module: nn.Module) -> str | None:
    """Numbers that a Normal distribution over them would not make sense for."""
    dtype = module.get_parameter(weight_names(module)[0]).dtype
    if dtype.is_floating_point and dtype.itemsize > 1:
        return None
    return f"its weight is {dtype}: noise needs real floating point numbers of 16 bits or more"


def name_clash(module: nn.Module) -> str | None:
    """The user's own attribute stands where the posterior would."""
    needed = {*added_names(module), *Variational.__annotations__, *dir(Flipout)} - set(dir(nn.Module))
    torchs = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn."))
    own = {*vars(module), *module._parameters, *module._buffers, *module._modules, *dir(type(module))}
    taken = sorted(needed & own - set(dir(torchs)) - {"weight", "bias"})
    return f"it has {_listed(taken)} already, a name that bayesify needs: rename it" if taken else None


def replaced_method(module: nn.Module) -> str | None:
    """A forward, or a method that forward uses, set on the instance: the class's own never runs."""
    used = {"forward", "__call__"} | reached_names(type(module))
    replaced = sorted(name for name in used & vars(module).keys() if callable(getattr(type(module), name, None)))
    if not replaced:
        return None
    undo = "accelerate.hooks.remove_hook_from_module(layer)" if hasattr(module, "_hf_hook") else "undo that"
    return f"its {_listed(replaced)} was replaced on the instance, and would run past any noise: {undo} first"


def _title(cls: type) -> str:
    return f"nn.{cls.__name__}" if getattr(nn, cls.__name__, None) is cls else cls.__qualname__


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
