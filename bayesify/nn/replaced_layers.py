"""Layers with a posterior that other code replaces after conversion: noticed as it happens, told at the next use.

torch tells of every module that is set in a model. Where one takes the place of a layer with a posterior, the next
forward of any layer of the same model asks whether that is gone: a child that is called by itself, compiled code, and
methods beside `forward` are seen so. Until then a forward looks at an empty list.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

SUSPECTED: list[ref[Any]] = []  # ledgers of models in which something took the place of a layer with a posterior
_FOLLOWED: WeakSet[Any] = WeakSet()
_LOCK = threading.Lock()  # a set must not grow while another thread goes over it


def follow_layers(ledger: Any) -> None:
    """Notice from now on what takes the place of the ledger's layers."""
    _listen()
    with _LOCK:
        _FOLLOWED.add(ledger)


def ledgers() -> list[Any]:
    """The ledgers of all models that there are."""
    with _LOCK:
        return list(_FOLLOWED)


def refuse_if_suspected(layer: Any) -> None:
    """Raise where a layer of the same model is gone: to call while anything is suspected.

    Raises:
        StalePosteriorError: see `Ledger.refuse_lost`.
    """
    if not torch.compiler.is_compiling():
        _refuse_if_suspected(layer)
    elif layer._suspected:
        why = "a layer with a posterior was replaced: model.kl() says which"
        disabled: Any = torch.compiler.disable(_refuse_if_suspected, reason=why)  # type: ignore[no-untyped-call]
        disabled(layer)


def is_suspected(layer: nn.Module) -> bool:
    """Whether something took the place of a layer of the same model."""
    return any(_has(suspected(), layer) for suspected in SUSPECTED)


def _refuse_if_suspected(layer: nn.Module) -> None:
    for suspected in list(SUSPECTED):
        ledger = suspected()
        if ledger is None or _has(ledger, layer):
            if ledger is not None:
                ledger.refuse_lost()
            SUSPECTED.remove(suspected)


def _has(ledger: Any, layer: nn.Module) -> bool:
    return ledger is not None and (ledger.root is layer or layer in ledger.layers)


@cache
def _listen() -> None:
    register_module_module_registration_hook(_notice)


def _notice(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    before = parent._modules.get(name)
    if before is None or before is module:
        return
    posteriors = {layer for layer in before.modules() if "_settings" in vars(layer)}
    if posteriors:
        touched = [ledger for ledger in ledgers() if not posteriors.isdisjoint(ledger.layers)]
        SUSPECTED.extend(map(ref, touched))
