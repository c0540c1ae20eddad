"""Why a layer must stay as it is: one small function per reason, each a sentence that a person understands, or None."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from ..analysis.asked_classes import asks_for_class
from ..analysis.bytecode import kept_on_self, reached_names, read_by_train
from ..analysis.registration import forwards_to
from ..analysis.site import Site
from ..analysis.weight_uses import UNTRACED, UNUSED, Uses
from ..nn.base import Flipout, Variational
from ..nn.layer_kinds import bias_names, layer_kind, weight_names
from ..nn.parametrized_weights import is_computed, kind_before, sources
from ..nn.posterior_tensors import SUFFIXES
from ..nn.registry import plain_classes
from ..nn.settings import Settings
from ..programs.part import Part, kind_of

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_OURS = {*Variational.__annotations__, *dir(Flipout)} - {*dir(nn.Module), "reset_parameters", "weight", "bias"}
_ALWAYS_USED = {"forward", "__call__", "__getattr__", "__getattribute__", "__setattr__", "weight", "bias"}


def blocker(site: Site) -> str | None:
    """The first reason why this layer cannot become variational, or None.

    None also for modules without a weight matrix, such as norms: `kept_because` has the sentence for those.
    """
    module = site.module
    if isinstance(module, parametrize.ParametrizationList):
        return None
    if "exported_problems" in vars(module) and not isinstance(module, Part):
        return exported(module)
    places = inside_computation, inside_adapter, read_by_parent, merged, told_apart, turned_into_another
    place = next(filter(None, (check(site) for check in places)), None)
    reason = scripted(module) or place or quantized(module)
    reason = reason or (computed(module) if site.known else parametrized(module) or unknown_class(site))
    if reason or not (site.known or site.weights):
        return reason
    means = [name for name, _ in site.weights] or [*weight_names(module), *bias_names(module)]
    reason = next(filter(None, (check(module, means) for check in (tensor_type, number_type, name_clash))), None)
    return reason or replaced_method(site) or renormalized(module) or kept_draw(site)


def merged(site: Site) -> str | None:
    """A weight that `train()` or `eval()` computes with, as to merge adapters: noise would not be in the sum."""
    own = {id(parameter) for parameter in site.module.parameters(recurse=False)}
    for module in (site.module, *(parent for _, parent in site.parents)):
        if own & site.forwards.answer(read_by_train, module):
            return f"{_title(type(module))}.train() computes with its weight, as to merge it, past any noise"
    return None


def told_apart(site: Site) -> str | None:
    """A layer that a forward knows by its exact class, which conversion changes."""
    for _, parent in site.parents:
        if site.forwards.answer(asks_for_class, parent, type(site.module)):
            asked = f"{_title(type(parent))}'s forward asks whether a layer's class is {type(site.module).__name__}"
            return f"{asked}, and a converted layer's is a subclass of it: isinstance() would do"
    return None


def turned_into_another(site: Site) -> str | None:
    """A forward that gives its module another class, at its first call say: that of the plain one."""
    for module in (site.module, *(parent for _, parent in site.readers)):
        if "self.__class__" in site.forwards.of_class(kept_on_self, type(module)):
            return f"{_title(type(module))}'s forward changes its class: call the model once before it is converted"
    return None


def kept_draw(site: Site) -> str | None:
    """A weight that a forward computes another from, and keeps that: one draw would last for ever."""
    own = {id(matrix) for matrix in site.matrices.values()}
    for module in dict.fromkeys((site.module, *(parent for _, parent in site.readers))):
        uses = site.forwards.uses(module) if own and not (module is site.module and site.known) else Uses()
        kept = [name for matrix in own for name in uses.kept.get(matrix, ())]
        kept += site.forwards.of_class(kept_on_self, type(module)) if own & uses.drawn.keys() else ()
        if kept:
            names = ", ".join(dict.fromkeys(kept))
            return f"{_title(type(module))}'s forward computes with it and sets {names}: a draw would be kept there"
    return None


def bears_weight(module: nn.Module) -> bool:
    """Whether the module itself holds or computes a weight: each such module has a row in the plan."""
    if any(True for _ in module.parameters(recurse=False)) or parametrize.is_parametrized(module):
        return True
    return isinstance(vars(module).get("weight"), torch.Tensor) or quantized(module) is not None


def has_axes(site: Site, settings: Settings) -> bool:
    """Whether its weight may have a posterior along the axes of its inputs: of a Linear layer that alone reads it."""
    module, additive = site.module, settings.posterior.parameterization == "additive"
    read = site.weights or site.readers or settings.drawn
    plain = isinstance(module, nn.Linear) and not isinstance(module, nn.LazyLinear)
    return plain and additive and not read and not is_computed(module, "weight")


def kept_because(module: nn.Module) -> str:
    """Why a module that bears a weight and that nothing blocks is kept all the same: it has no matrix."""
    if isinstance(module, parametrize.ParametrizationList):
        return "its layer's weight is computed from it"
    return f"{_title(kind_of(module))} has no weight matrix"


def exported(module: nn.Module) -> str | None:
    """The matrices of an exported program's module that its graph uses in another way than to multiply by them."""
    return "; ".join(f"{name}: {why}" for name, why in vars(module)["exported_problems"].items()) or None


def scripted(module: nn.Module) -> str | None:
    """A TorchScript module: it runs code of its own, whatever its Python class says."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module, whose code is fixed: convert the Python model that it was made from"
    return None


def inside_computation(site: Site) -> str | None:
    """A layer inside a parametrization: what the parametrization computes is a posterior mean."""
    if any(isinstance(parent, parametrize.ParametrizationList) for _, parent in site.parents):
        return "another layer's weight is computed by it"
    return None


def inside_adapter(site: Site) -> str | None:
    """A layer that peft wraps, whose weight peft may merge in place. LoRA's own layers can convert."""
    for name, module in (*site.parents, (site.name, site.module)):
        if "base_layer" in module._modules and hasattr(type(module), "adapter_layer_names"):
            part, _, adapter = site.name.removeprefix(f"{name}." if name else "").partition(".")
            if part in ("lora_A", "lora_B"):
                return _adapter_problem(site, module, adapter)
            where = f"{name or 'the model'} ({_title(type(module))})"
            lora = "the policy `lora` converts its adapters instead, " if "lora_A" in module._modules else ""
            return f"it is inside the peft adapter {where}: {lora}model.merge_and_unload() makes it plain"
    return None


def _adapter_problem(site: Site, module: nn.Module, adapter: str) -> str | None:
    kind = getattr(module, "lora_variant", {}).get(adapter)
    if kind is not None:
        return f"its adapter {adapter!r} is of the kind {type(kind).__name__}, which reads its weight itself"
    merged = adapter in getattr(module, "merged_adapters", ())
    if merged:
        return f"its adapter {adapter!r} is merged, and not called: model.unmerge_adapter() first"
    uses = site.forwards.uses(module)
    why = f": its forward does not trace ({uses.failure})" if uses.failure else ", but may read its weight"
    reached = id(site.module) in uses.called or not site.known
    return None if reached else f"{_title(type(module))} does not call it{why}"


def read_by_parent(site: Site) -> str | None:
    """A layer whose weight a parent reads without calling the layer, and does more with than multiply by it."""
    for _, parent in site.readers:
        if site.called and site.called_beside(parent):
            continue
        if site.computed_from:
            problem: str | None = "it is computed anew for each reading"
        else:
            uses = site.forwards.uses(parent)
            problem = next(filter(None, map(uses.problem, site.matrices.values())), None)
        if problem is not None:
            why = "what it does with it was not seen" if problem == UNUSED else problem
            return f"{_title(type(parent))} reads its weight without calling it: {why}"
    return None


def quantized(module: nn.Module) -> str | None:
    """A quantized layer of torch.ao, which holds packed integers or fake-quantizes in its forward."""
    if any(base.__module__.startswith("torch.ao.nn.") for base in type(module).__mro__):
        return f"{_title(type(module))} is a quantized layer: convert the float model, before quantizing it"
    return None


def parametrized(module: nn.Module) -> str | None:
    """A layer of an unknown class whose weight is computed from other Parameters."""
    if not parametrize.is_parametrized(module):
        return None
    names = sorted(getattr(module, "parametrizations", {}))
    remove = "torch.nn.utils.parametrize.remove_parametrizations(layer, name)"
    return f"its {_listed(names)} is computed by a parametrization: {remove} makes it plain"


def unknown_class(site: Site) -> str | None:
    """A class that is not in the registry, whose matrices are not multiplied by in products that can be rerouted."""
    module, cls = site.module, type(site.module)
    if site.weights or isinstance(module, _NORMS):
        return None
    base = next((known for known in cls.__mro__ if known in plain_classes()), None)
    offer = _subclass(cls, base) if base is not None else None
    return offer or _problems(site) or None


def _problems(site: Site) -> str:
    """What its forward does with each of its matrices; one that does not trace may be vouched for."""
    untraced = {why for why in site.problems.values() if why.startswith(UNTRACED)}
    if len(untraced) == 1 == len(set(site.problems.values())):
        names = list(site.problems)
        call = f"bayesify.register({_title(type(site.module))}, weights={names})"
        return f"{untraced.pop()}; if it only multiplies by {', '.join(names)}, {call} converts it"
    return "; ".join(f"{name}: {why}" for name, why in site.problems.items())


def _subclass(cls: type, base: type) -> str | None:
    """The advice to register a subclass of a known class; None for one whose own code reads the weight."""
    used = _ALWAYS_USED | reached_names(base)
    changed = sorted(name for name in used if getattr(cls, name, None) is not getattr(base, name, None))
    title, parent = _title(cls), _title(base)
    if changed and not (changed == ["forward"] and forwards_to(cls, base)):
        return None
    how = f"whose forward calls {parent}'s" if changed else "and inherits its forward unchanged"
    how = f"{title} is a subclass of {parent} {how}"
    return f"{how}: bayesify.register({cls.__name__}, like={parent}) converts it"


def computed(module: nn.Module) -> str | None:
    """A weight that is neither a Parameter nor computed in a way that the layer's posterior allows."""
    if isinstance(module, nn.MultiheadAttention):
        return None if weight_names(module) else "its projections are not Parameters of the layer"
    kind = layer_kind(module)
    biases = kind.biases(module)
    for name in (*kind.weights(module), *biases):
        if name in module._parameters and (name in biases or module._parameters[name] is not None):
            continue
        if not is_computed(module, name):
            return f"its {name} is not a Parameter of the layer"
        if not kind.computes:
            return f"its {name} is computed from other Parameters, which a {_title(kind_of(module))} here cannot do"
    return None


def tensor_type(module: nn.Module, means: list[str]) -> str | None:
    """A plain layer whose weight is quantized, sharded or packed in another way."""
    for name in means:
        for source in sources(module, name):
            if type(source) not in (nn.Parameter, UninitializedParameter):
                kind = type(source).__name__
                plain = "convert before quantizing, sharding or distributing it"
                return f"its {name} is a {kind}, a Parameter of a kind of its own, to which noise may not fit: {plain}"
    return None


def number_type(module: nn.Module, means: list[str]) -> str | None:
    """A weight of integers, of complex or of 8-bit numbers, which have no Normal distribution.

    Where a forward of the user's multiplies by complex numbers, a draw of their real and imaginary parts does.
    """
    for name in means:
        dtype = sources(module, name)[0].dtype
        drawn = dtype.is_complex and kind_before(module) not in plain_classes()
        if not drawn and not (dtype.is_floating_point and dtype.itemsize > 1):
            return f"its {name} is {dtype}: noise needs real floating point numbers of 16 bits or more"
    return None


def name_clash(module: nn.Module, means: list[str]) -> str | None:
    """An attribute of the user's has a name that the posterior needs."""
    added = {f"{name}_{suffix}" for name in {*means, *bias_names(module)} for suffix in SUFFIXES}
    kinds = type(module).__mro__
    torchs = next(base for base in kinds if base.__module__.startswith("torch.nn."))
    users = chain.from_iterable(vars(base) for base in kinds if base not in torchs.__mro__)
    own = {*vars(module), *module._parameters, *module._buffers, *module._modules, *users}
    taken = sorted(name for name in own & _OURS | own & added if not hasattr(torchs, name))
    return f"it has {_listed(taken)} already, a name that bayesify needs: rename it" if taken else None


def replaced_method(site: Site) -> str | None:
    """A forward, or a method that it uses, that is set on the instance, so that the class's own never runs."""
    module = site.module
    used = {"forward", "__call__"} | site.forwards.of_class(reached_names, kind_of(module))
    replaced = sorted(name for name in used & vars(module).keys() if callable(getattr(type(module), name, None)))
    if not replaced:
        return None
    undo = "accelerate.hooks.remove_hook_from_module(layer)" if "_hf_hook" in vars(module) else "undo that"
    return f"its {_listed(replaced)} was replaced on the instance, and would run past any noise: {undo} first"


def renormalized(module: nn.Module) -> str | None:
    """An embedding whose max_norm rewrites in place the rows that it looks up."""
    if getattr(module, "max_norm", None) is None or not isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    return "its max_norm rewrites the rows at every look-up: clip them once, then set max_norm to None"


def _title(cls: type) -> str:
    return f"nn.{cls.__name__}" if getattr(nn, cls.__name__, None) is cls else cls.__qualname__


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
