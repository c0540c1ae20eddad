"""Sites: modules that bear a weight, where they stand, and what the forwards of a model do with their matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn
from torch.nn.parameter import Parameter
from torch.nn.utils.parametrize import ParametrizationList

from ..nn.layer_kinds import layer_kind
from ..nn.parametrized_weights import is_computed, kind_before, sources
from ..nn.registry import plain_classes, registered_weights
from ..programs.part import Holder
from .bytecode import called_by_code, read_by_code
from .census import Census
from .weight_uses import Uses, matrices, uses

Named = tuple[str, nn.Module]


@dataclass
class Forwards:
    """What the forwards of a model's modules do with weights; each is looked at once."""

    _uses: dict[int, Uses] = field(default_factory=dict)
    _reads: dict[int, frozenset[int]] = field(default_factory=dict)

    def uses(self, module: nn.Module) -> Uses:
        """What this module's forward does with the matrices that it reads."""
        if id(module) not in self._uses:
            self._uses[id(module)] = uses(module)
        return self._uses[id(module)]

    def reads(self, module: nn.Module) -> frozenset[int]:
        """The ids of its descendants' Parameters that its code reads."""
        if id(module) not in self._reads:
            self._reads[id(module)] = read_by_code(module)
        return self._reads[id(module)]


@dataclass(frozen=True)
class Site:
    """One module that bears a weight, and where it stands.

    Attributes:
        module: the module.
        name: its canonical dotted name, "" for the root.
        parents: (name, module) of all its ancestors, root first; of a module with aliases, those of every alias.
        census: what the model's traced forward called, if it traced.
        forwards: what is known of all forwards of the model, shared by its sites.
    """

    module: nn.Module
    name: str
    parents: tuple[Named, ...] = ()
    census: Census | None = None
    forwards: Forwards = field(default_factory=Forwards, repr=False, compare=False)

    @property
    def attention(self) -> nn.MultiheadAttention | None:
        """The attention whose `out_proj` this is: plain, it reads its weight; variational, it calls it."""
        found = (each for _, each in self.parents if type(each) is nn.MultiheadAttention)
        return next((each for each in found if each.out_proj is self.module), None)

    @property
    def known(self) -> bool:
        """Whether its class has a variational form of its own.

        Not that of a table which a forward multiplies by: its products get the noise, and look-ups the mean.
        """
        looked_up = self.looks_up and any(True for _ in self.rerouting)
        return kind_before(self.module) in plain_classes() and not looked_up

    @property
    def is_table(self) -> bool:
        """Whether its rows are looked up, and its class has a variational form."""
        return self.looks_up and self.known

    @property
    def looks_up(self) -> bool:
        """Whether it looks rows up in a table."""
        return isinstance(self.module, nn.Embedding | nn.EmbeddingBag)

    @cached_property
    def called(self) -> bool:
        """Whether the traced forward, or a parent's code, calls it."""
        if self.census is not None and not self.census.never_called(self.name):
            return True
        return any(called_by_code(parent, path) for name, parent in self.parents for path in self._paths(name, parent))

    def called_beside(self, reader: nn.Module) -> bool:
        """Whether it is called, too, where this ancestor reads its weight: its code may only seem to, on a branch."""
        if self.census is not None and not self.census.never_called(self.name):
            return True
        found = self.forwards.uses(reader)
        others = [(name, parent) for name, parent in self.parents if parent is not reader]
        by_others = (called_by_code(parent, path) for name, parent in others for path in self._paths(name, parent))
        return not found.failure and (id(self.module) in found.called or any(by_others))

    @cached_property
    def readers(self) -> tuple[Named, ...]:
        """The ancestors whose forward reads a matrix of this module itself."""
        own = {id(each) for each in (*matrices(self.module).values(), *self.computed_from)}
        if self.attention is not None or not own or isinstance(self.module, Holder):
            return ()  # a graph calls its parts for each product
        parents = [(name, parent) for name, parent in self.parents if not _of_torch(parent)]
        found = [(name, parent) for name, parent in parents if own & self.forwards.reads(parent)]
        if not found and self.census is not None and self.name in self.census.reads:
            found = [(name, parent) for name, parent in parents if own & _mentioned(self.forwards.uses(parent))]
        return tuple(found)

    @cached_property
    def computed_from(self) -> tuple[Parameter, ...]:
        """What its weights are computed from, by a parametrization or a norm, as far as they are."""
        names = layer_kind(self.module).weights(self.module) if kind_before(self.module) in plain_classes() else ()
        computed = (name for name in names if is_computed(self.module, name))
        return tuple(each for name in computed for each in sources(self.module, name))

    @property
    def rerouting(self) -> Iterator[Named]:
        """Those of the readers that multiply by a matrix of this module, or compute one from it, and do no more."""
        if self.computed_from:
            return  # what they read is no Parameter, which their products could be told by
        own = {id(each) for each in matrices(self.module).values()}
        for name, parent in self.readers:
            found = self.forwards.uses(parent)
            apart = kind_before(self.module) in plain_classes() and self.called  # its own calls would draw beside
            drawn = own & found.drawn.keys() and not apart
            if (own & found.multiplied.keys() or drawn) and not own & found.problems.keys():
                yield name, parent

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """The names of its matrices of which a forward takes one draw, since it computes with them."""
        places = [self.forwards.uses(each) for _, each in self.rerouting]
        places += [] if self.known else [self.forwards.uses(self.module)]
        own = self.module._parameters
        return tuple(name for name in own if any(id(own[name]) in place.drawn for place in places))

    @cached_property
    def weights(self) -> tuple[tuple[str, int], ...]:
        """(name, fan-in) of the matrices that rerouted products reach, of a class without a variational form."""
        if self.known or isinstance(self.module, ParametrizationList):
            return ()
        told = registered_weights(type(self.module))
        if told:
            own = matrices(self.module)
            return tuple((name, own[name][0].numel()) for name in told if name in own)
        places = [self.forwards.uses(self.module), *(self.forwards.uses(each) for _, each in self.rerouting)]
        known = [place.multiplied | place.drawn for place in places]
        found = []
        for name, each in matrices(self.module).items():
            sizes = [sizes[id(each)] for sizes in known if id(each) in sizes]
            if sizes and not any(id(each) in place.problems for place in places):
                found.append((name, sizes[0]))
        return tuple(found)

    @property
    def problems(self) -> dict[str, str]:
        """Why each of its other matrices stays as it is."""
        reached, found = dict(self.weights), self.forwards.uses(self.module)
        stay = {name: each for name, each in matrices(self.module).items() if name not in reached}
        return {name: found.problem(each) or "it was not registered" for name, each in stay.items()}

    def _paths(self, name: str, parent: nn.Module) -> set[str]:
        prefix = f"{name}." if name else ""
        paths = {key for key, child in parent.named_children() if child is self.module}
        return paths | ({self.name.removeprefix(prefix)} if self.name.startswith(prefix) else set())


def _of_torch(module: nn.Module) -> bool:
    """torch's containers call their layers; its fused encoder layer, subclassed or not, is known to `parents`."""
    return type(module).__module__.startswith("torch.nn.modules.") or isinstance(module, nn.TransformerEncoderLayer)


def _mentioned(found: Uses) -> set[int]:
    return {*found.multiplied, *found.drawn, *found.problems}
