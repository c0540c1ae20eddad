"""A converted model in Lightning's own Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _libraries(vision: Any) -> None:
    pytest.importorskip("lightning")


def network() -> Any:
    torch.manual_seed(1)
    return bayesify.convert(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), "lrt")


def data() -> DataLoader[Any]:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=4)


def module(**options: Any) -> Any:
    import lightning

    from bayesify.integrations.lightning import PredictsPosterior

    class Module(PredictsPosterior, lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.predict_options = {"task": "classification", "samples": 4, "seed": 0}
            self.losses: list[float] = []

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.losses.append(float(loss))
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
            if not options.get("scheduler"):
                return optimizer
            return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]

    return Module()


def trainer(place: Path, beta: Any = 1.0, **options: Any) -> Any:
    import lightning

    from bayesify.integrations.lightning import KLCallback

    how: dict[str, Any] = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": place, **options,
    }  # fmt: skip
    return lightning.Trainer(callbacks=[KLCallback(n_train=16, beta=beta)], **how)


def scales(model: Any) -> list[torch.Tensor]:
    return [layer.scale_of("weight") for _, layer in bayesify.variational_layers(model)]  # type: ignore[misc]


def test_groups_logs_and_prediction(tmp_path: Path) -> None:
    made, runs = module(), trainer(tmp_path)
    runs.fit(made, data())
    groups = runs.optimizers[0].param_groups
    decaying = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert not decaying & {id(scale) for scale in scales(made)}
    assert sum(len(g["params"]) for g in groups) == len(list(made.parameters()))
    logged = runs.logged_metrics
    assert logged["posterior/kl"] > 0
    assert logged["posterior/mean_std"] > 0
    assert logged["posterior/reached"] == 1
    assert logged["posterior/at_prior"] == 0
    assert not runs.optimizers[0]._optimizer_step_pre_hooks
    found = runs.predict(made, data())
    assert len(found) == 4
    assert all(isinstance(each, bayesify.Prediction) and each.mean.shape == (4, 3) for each in found)


def gradients(runs: Any, made: Any) -> list[torch.Tensor]:
    """The gradients of the scales that the first step of the optimizer uses."""
    seen: list[torch.Tensor] = []
    configure = made.configure_optimizers

    def watched() -> Any:
        optimizer = configure()
        optimizer.register_step_post_hook(lambda *_: seen.extend(s.grad.clone() for s in scales(made) if len(seen) < 2))
        return optimizer

    made.configure_optimizers = watched
    torch.manual_seed(3)
    runs.fit(made, data())
    return seen


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_kl_counts_once_for_each_step(accumulated: int, tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": accumulated}
    with_kl, without = (gradients(trainer(tmp_path, beta=beta, **options), module()) for beta in (1000.0, 0.0))
    model = network()
    for one, other, kl in zip(
        with_kl, without, torch.autograd.grad(1000 * model.kl() / 16, scales(model)), strict=True
    ):
        torch.testing.assert_close(one - other, kl, rtol=1e-3, atol=1e-4)


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def betas(step: int) -> float:
        return 0.1 * (step + 1)

    whole, first = module(), module()
    runs = trainer(tmp_path, beta=betas, max_epochs=2)
    torch.manual_seed(4)
    runs.fit(whole, data())
    torch.manual_seed(4)
    half = trainer(tmp_path, beta=betas)
    half.fit(first, data())
    state = torch.get_rng_state()
    half.save_checkpoint(tmp_path / "half.ckpt")
    again = module()
    torch.set_rng_state(state)
    trainer(tmp_path, beta=betas, max_epochs=2).fit(again, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.losses == whole.losses[4:]
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), whole.parameters(), strict=True))


def test_posteriors_that_ended_as_their_priors_are_told(tmp_path: Path) -> None:
    made = module()
    bayesify.set_posterior_std(made, 5 / 4**0.5)  # the prior's, of the first layer
    made.net[0].weight.data.zero_()
    runs = trainer(tmp_path)
    with pytest.warns(UserWarning, match=r"1 posteriors ended as their priors.*: net\.0\.weight\. bayesify.calibrate"):
        runs.fit(made, data())
    assert runs.logged_metrics["posterior/at_prior"] == 0.5


def test_mixed_precision(tmp_path: Path) -> None:
    made = module()
    trainer(tmp_path, precision="bf16-mixed").fit(made, data())
    assert all(scale.dtype == torch.float32 and scale.isfinite().all() for scale in scales(made))


def test_decay_under_a_scheduler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weight decay pulls on the posterior's scales.*param_groups"):
        trainer(tmp_path).fit(module(scheduler=True), data())
