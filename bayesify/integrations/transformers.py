"""transformers' Trainer, and those of TRL: the KL once for each optimizer step, whatever is accumulated.

    trainer = VariationalTrainer(model=model, args=args, train_dataset=data)
    trainer.train()
    prediction = trainer.predict(test_data, task="classification")
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback

from ..nn.kl import variational_layers
from ..uncertainty.kl_in_training import AttachedKL, Schedule, attach_kl
from ..uncertainty.predict import predict
from ..uncertainty.prediction import Prediction
from .posterior_state import posterior_state, refuse_decay, separate_scales


class KLCallback(TrainerCallback):
    """Adds the KL's gradient at each step of the optimizer, and logs the posterior's state with the loss.

    For a trainer of one's own; it does not make the optimizer's groups, as `VariationalTrainer` does, and refuses an
    optimizer whose weight decay would pull on the scales.

    Args:
        n_train: how many examples the loss is a mean over in one epoch; the dataset's length if not given. Where the
            loss is a mean over tokens, as for language models: how many tokens the training set has.
        beta: the KL's weight, or a function of the number of steps done.
    """

    def __init__(self, n_train: int | None = None, beta: float | Schedule = 1.0) -> None:
        self.n_train, self.beta = n_train, beta
        self.handle: AttachedKL | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach the KL, at the step from which training goes on."""
        model, optimizer = kwargs["model"], _innermost(kwargs["optimizer"])
        remedy = "use bayesify.integrations.transformers.VariationalTrainer, or optimizers=(an optimizer of "
        refuse_decay(optimizer, model, f"{remedy}bayesify.param_groups(model), None)")
        count = self.n_train if self.n_train is not None else len(kwargs["train_dataloader"].dataset)
        self._detach()
        self.handle = attach_kl(optimizer, model, count, self.beta)
        self.handle.steps = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the posterior's state to what is logged in training."""
        if logs is not None and "loss" in logs and self.handle is not None:
            logs.update(posterior_state(self.handle.model))
            state.log_history[-1].update(logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the optimizer as it was."""
        self._detach()

    def _detach(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None


class Variational:
    """What a trainer of a converted model does otherwise; as in `class T(Variational, SFTTrainer)`.

    Args:
        n_train, beta: see `KLCallback`.
        args, kwargs: the trainer's own.
    """

    def __init__(self, *args: Any, n_train: int | None = None, beta: float | Schedule = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # first, so that what it adds to the logs is there for the callbacks that report them
        self.callback_handler.callbacks.insert(0, KLCallback(n_train, beta))  # type: ignore[attr-defined]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The trainer's optimizer, in which the scales have groups of their own: faster, without weight decay."""
        given = getattr(self, "optimizer", None) is not None
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        model: nn.Module = self.model  # type: ignore[attr-defined]
        if not given and next(variational_layers(model), None) is not None:
            separate_scales(optimizer, model)
        return optimizer

    def predict(self, test_dataset: Any, **options: Any) -> Prediction:
        """The predictive mean and its uncertainty for a dataset, as `bayesify.predict` gives them.

        Args:
            test_dataset: the examples, with the trainer's own collator; labels in them are the model's to ignore.
            options: of `bayesify.predict`: `task`, `samples`, `seed`, ...; `output` is "logits" if not given.
        """
        loader = self.get_test_dataloader(test_dataset)  # type: ignore[attr-defined]
        model: nn.Module = self.model  # type: ignore[attr-defined]
        return predict(model, loader, **{"output": "logits", **options})


class VariationalTrainer(Variational, Trainer):  # type: ignore[misc]
    """transformers' Trainer for a converted model."""


def _innermost(optimizer: Any) -> Optimizer:
    """The optimizer inside of accelerate's wrapper."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer  # type: ignore[no-any-return]
