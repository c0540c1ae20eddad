"""Lightning: the KL once for each optimizer step, whatever is accumulated.

    trainer = Trainer(callbacks=[KLCallback(n_train=len(data))])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..surgery.optimizer import decays_scales
from ..uncertainty.kl_in_training import AttachedKL, Schedule, attach_kl
from ..uncertainty.predict import predict
from ..uncertainty.prediction import Prediction
from .posterior_state import posterior_state, refuse_decay, separate_scales


class KLCallback(Callback):
    """Adds the KL's gradient at each step of the optimizers, logs the posterior's state, and spares scales the decay.

    The scales that an optimizer would decay get groups of their own: twice the learning rate and no weight decay.
    Where a learning rate scheduler counts the groups already, `configure_optimizers` has to make them itself, by
    `bayesify.param_groups(self, lr=...)`.

    Args:
        n_train: how many examples the training set has, if the loss is a mean over examples.
        beta: the KL's weight, or a function of the number of steps done.
    """

    def __init__(self, n_train: int, beta: float | Schedule = 1.0) -> None:
        self.n_train, self.beta = n_train, beta
        self.handles: list[AttachedKL] = []
        self._steps = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the KL, before the optimizers' states come back from a checkpoint."""
        for optimizer in trainer.optimizers:
            if trainer.lr_scheduler_configs:
                refuse_decay(optimizer, pl_module, "make it from bayesify.param_groups(self, lr=...)")
            elif decays_scales(optimizer, pl_module):
                separate_scales(optimizer, pl_module)
        self.handles = [attach_kl(each, pl_module, self.n_train, self.beta) for each in trainer.optimizers]
        for handle in self.handles:
            handle.steps = self._steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the KL, the mean std and the share of posteriors that were reached, as often as the trainer logs."""
        if trainer.global_step % max(1, getattr(trainer, "log_every_n_steps", 50)) == 0:
            pl_module.log_dict(posterior_state(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """How far the KL's schedule is, for a checkpoint."""
        return {"steps": self.handles[0].steps if self.handles else self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the schedule from a checkpoint."""
        self._steps = int(state_dict["steps"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers as they were, however the fit ended."""
        for handle in self.handles:
            self._steps = handle.steps
            handle.remove()
        self.handles = []


class PredictsPosterior:
    """Before LightningModule: `trainer.predict` gives a `bayesify.Prediction` for each batch.

    Attributes:
        predict_options: of `bayesify.predict`: `{"task": "classification", "samples": 64}`.
    """

    predict_options: Mapping[str, Any] = {}

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Prediction:
        """The batch's prediction: labels after the inputs, as training has them, are left out."""
        return predict(self, iter([batch]), **self.predict_options)  # type: ignore[arg-type]
