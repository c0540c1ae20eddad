"""A site: one module that bears a weight, where it stands, and what the model's forwards do with its matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.parameter import Parameter
from torch.nn.utils.parametrize import ParametrizationList

from ..nn.layer_kinds import layer_kind
from ..nn.parametrized_weights import is_computed, kind_before, sources
from ..nn.registry import plain_classes, registered_weights
from ..programs.part import Holder
from .bytecode import called_by_code, forward_chains, read_by_code
from .census import Census
from .weight_uses import Uses, matrices, uses

Named = tuple[str, nn.Module]


@dataclass
class Forwards:
    """What the forwards of a model's modules do with weights; every forward is traced and read once at most.

    Attributes:
        look_into: the ids of modules that read the weights of others: traces of those around them look into them.
    """

    look_into: frozenset[int] = frozenset()
    _uses: dict[int, Uses] = field(default_factory=dict)
    _reads: dict[int, frozenset[int]] = field(default_factory=dict)
    _answers: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def uses(self, module: nn.Module) -> Uses:
        """What this module's forward does with the matrices that it reads."""
        if id(module) not in self._uses:
            self._uses[id(module)] = uses(module, self.look_into)
        return self._uses[id(module)]

    def of_class(self, question: Callable[..., Any], cls: type, *more: Any) -> Any:
        """The answer of `question(cls, *more)`, which reads the class's code: asked once for all of its modules."""
        key = (question, cls, *more)
        if key not in self._answers:
            self._answers[key] = question(*key[1:])
        return self._answers[key]

    def answer(self, question: Callable[..., Any], module: nn.Module, *more: Any) -> Any:
        """The answer of `question(module, *more)`, asked once."""
        key = (question, id(module), *more)
        if key not in self._answers:
            self._answers[key] = question(module, *more)
        return self._answers[key]

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
        """The attention whose `out_proj` this is: a plain one reads its weight, a variational one calls it."""
        attentions = (parent for _, parent in self.parents if type(parent) is nn.MultiheadAttention)
        return next((attention for attention in attentions if attention.out_proj is self.module), None)

    @cached_property
    def matrices(self) -> dict[str, Parameter]:
        """Its own Parameters of two or more dimensions, by name."""
        return matrices(self.module)

    @cached_property
    def known(self) -> bool:
        """Whether it becomes the variational form of its class.

        False for an embedding whose table a forward also multiplies by: the products get the noise, look-ups the mean.
        """
        looked_up = self.looks_up and bool(self.rerouting)
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
        return any(self._called_by(name, parent) for name, parent in self.parents)

    def called_beside(self, reader: nn.Module) -> bool:
        """Whether it is called although this ancestor's code reads its weight: that may stand on a branch not taken."""
        if self.census is not None and not self.census.never_called(self.name):
            return True
        uses = self.forwards.uses(reader)
        others = [(name, parent) for name, parent in self.parents if parent is not reader]
        by_others = (self._called_by(name, parent) for name, parent in others)
        return not uses.failure and (id(self.module) in uses.called or any(by_others))

    @cached_property
    def readers(self) -> tuple[Named, ...]:
        """The ancestors whose forward reads a matrix of this module itself."""
        own = {id(matrix) for matrix in (*self.matrices.values(), *self.computed_from)}
        if self.attention is not None or not own or isinstance(self.module, Holder):
            return ()  # a graph calls its parts for each product
        parents = [(name, parent) for name, parent in self.parents if not _of_torch(parent)]
        readers = [(name, parent) for name, parent in parents if own & self.forwards.reads(parent)]
        if not readers and self.census is not None and self.name in self.census.reads:
            readers = [(name, parent) for name, parent in parents if own & _mentioned(self.forwards.uses(parent))]
            unseen = [(name, parent) for name, parent in parents if self.forwards.uses(parent).failure]
            readers = readers or unseen[-1:]
        return tuple(readers)

    @cached_property
    def computed_from(self) -> tuple[Parameter, ...]:
        """The Parameters that its weights are computed from by a parametrization or a norm; empty for plain weights."""
        names = layer_kind(self.module).weights(self.module) if kind_before(self.module) in plain_classes() else ()
        computed = (name for name in names if is_computed(self.module, name))
        return tuple(source for name in computed for source in sources(self.module, name))

    @cached_property
    def rerouting(self) -> tuple[Named, ...]:
        """The readers that only multiply by this module's matrices, or by what they compute from these."""
        if self.computed_from:
            return ()  # what they read is not a Parameter, by which their products could be recognized
        return tuple((name, parent) for name, parent in self.readers if self._multiplied_by(self.forwards.uses(parent)))

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """The names of its matrices of which a forward takes one draw, because it computes with them."""
        places = [self.forwards.uses(reader) for _, reader in self.rerouting]
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
            return tuple((name, self.matrices[name][0].numel()) for name in told if name in self.matrices)
        places = [self.forwards.uses(self.module), *(self.forwards.uses(reader) for _, reader in self.rerouting)]
        known = [place.multiplied | place.drawn for place in places]
        weights = []
        for name, matrix in self.matrices.items():
            sizes = [sizes[id(matrix)] for sizes in known if id(matrix) in sizes]
            if sizes and not any(id(matrix) in place.problems for place in places):
                weights.append((name, sizes[0]))
        return tuple(weights)

    @property
    def problems(self) -> dict[str, str]:
        """Why its matrices that are not in `weights` stay as they are, by name."""
        reached, uses = dict(self.weights), self.forwards.uses(self.module)
        stay = {name: matrix for name, matrix in self.matrices.items() if name not in reached}
        return {name: uses.problem(matrix) or "it was not registered" for name, matrix in stay.items()}

    def _multiplied_by(self, uses: Uses) -> bool:
        own = {id(matrix) for matrix in self.matrices.values()}
        apart = kind_before(self.module) in plain_classes() and self.called  # its own calls would take another draw
        drawn = own & uses.drawn.keys() and not apart
        return bool(own & uses.multiplied.keys() or drawn) and not own & uses.problems.keys()

    def _called_by(self, name: str, parent: nn.Module) -> bool:
        chains = self.forwards.of_class(forward_chains, type(parent))
        prefix = f"{name}." if name else ""
        paths = {chain[0] for chain in chains if chain and parent._modules.get(chain[0]) is self.module}
        paths |= {self.name.removeprefix(prefix)} if self.name.startswith(prefix) else set()
        return any(called_by_code(chains, path) for path in paths)


def _of_torch(module: nn.Module) -> bool:
    """torch's own containers call their layers; what its fused encoder layer reads, `planning.surroundings` knows."""
    return type(module).__module__.startswith("torch.nn.modules.") or isinstance(module, nn.TransformerEncoderLayer)


def _mentioned(uses: Uses) -> set[int]:
    return {*uses.multiplied, *uses.drawn, *uses.problems}
