"""What is said about weights that were read: some are NaN or infinite, or damage to them would not have shown."""

from __future__ import annotations

import math
import warnings

from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from ..nn.parametrized_weights import as_real
from .untrusted.content import Content
from .untrusted.file_kind import kind_of
from .untrusted.zip_directory import ZipDirectory


def warn_of_not_finite(model: nn.Module | None, whose: object) -> None:
    """Warn of Parameters that hold NaN or infinite numbers, as a warning at the caller's caller.

    Args:
        model: the model; None where there is nothing to look for.
        whose: what the sentence is about: a file, or what was done.
    """
    note = None if model is None else not_finite(model)
    if note is not None:
        warnings.warn(f"{whose}: {note}", stacklevel=3)


def warn_of_no_checksums(content: Content, path: object, *, meta: bool) -> None:
    """Warn, at the caller's caller, of a file of torch.save in a form without checksums.

    That is its old format, and the present one under `torch.serialization.set_crc32_options(False)`. Under `meta` no
    numbers were read, and nothing is said.
    """
    kind = None if meta else kind_of(content).kind
    if kind == "torch old" or (kind == "torch zip" and not ZipDirectory(content).checked):
        warnings.warn(
            f"{path}: has no checksums, so that damage to its numbers would not show; torch.save writes them today",
            stacklevel=3,
        )


def not_finite(model: nn.Module) -> str | None:
    """One sentence about the Parameters that hold NaN or infinite numbers, None if there are none.

    Buffers may hold such numbers (masks of attention do); Parameters on the meta device hold none.
    """
    wrong = {name: count for name, weight in model.named_parameters() if (count := _count(weight))}
    if not wrong:
        return None
    first = next(iter(wrong))
    more = f", the first of {len(wrong)} tensors that do" if len(wrong) > 1 else ""
    return f"{first} has NaN or infinite weights ({wrong[first]} of {model.get_parameter(first).numel()}){more}"


def _count(weight: Tensor) -> int:
    numbers = weight.is_floating_point() or weight.is_complex()
    if not numbers or is_lazy(weight) or weight.is_meta or type(weight) is not Parameter:  # such as a fake tensor
        return 0
    own = weight.detach().float() if weight.dtype.itemsize == 1 else weight.detach()  # torch cannot sum 8-bit numbers
    if math.isfinite(as_real(own).sum().item()):  # one pass for five; but a sum of finite numbers may overflow
        return 0
    return int(own.numel() - own.isfinite().sum())
