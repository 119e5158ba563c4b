"""One loss for two networks: whose gradient goes where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from langevin.baselines.gan import GanLoss, GanObjective, GanStage, TrainedGan
from langevin.baselines.gan_network import Gan, GanConfig
from langevin.baselines.pixels import pixels
from langevin.errors import DataError
from langevin.training.config import LoopConfig
from langevin.training.data import PictureSet
from langevin.training.randomness import normal, sample_generators

CONFIG = GanConfig(size=8, latent=5, width=6, channel_mult=(1, 2))
SAMPLES = [(0, i) for i in range(12)]


def objective(grey: PictureSet, config: GanConfig = CONFIG, **stage: object) -> GanObjective:
    torch.manual_seed(0)
    loop = LoopConfig(steps=10, batch_size=12, learning_rate=1e-3)
    return GanObjective(Gan(config), grey, GanStage(network=config, loop=loop, **stage), seed=0, device="cpu")


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", list(GanLoss))
@pytest.mark.parametrize("classes", [None, 4])
def test_each_network_s_gradient_is_that_of_its_own_loss(grey: PictureSet, kind: GanLoss, classes: int | None) -> None:
    config = GanConfig(size=8, latent=5, width=6, channel_mult=(1, 2), num_classes=classes)
    made = objective(grey, config, objective=kind, r1=0.7, r1_every=1)
    loss, figures = made.loss(SAMPLES, 3)
    loss.backward()
    found = gradients(made.network)

    made.network.zero_grad()
    labels = torch.tensor([grey.records[i]["label"] for _, i in SAMPLES]) if classes else None
    z = normal(sample_generators(0, "latent", 3, SAMPLES), (5,))
    fake = made.network.generator(z, labels)
    generator_loss = kind.of_generator(made.network.discriminator(fake, labels))
    generator_loss.backward()
    own = {n: g for n, g in gradients(made.network).items() if n.startswith("generator")}

    made.network.zero_grad()
    real = pixels(grey, SAMPLES, 0, 1).requires_grad_()
    on_real = made.network.discriminator(real, labels)
    critic_loss = kind.of_discriminator(on_real, made.network.discriminator(fake.detach(), labels))
    slope = torch.autograd.grad(on_real.sum(), real, create_graph=True)[0]
    penalty = slope.square().sum((1, 2, 3)).mean()
    (critic_loss + 0.35 * penalty).backward()
    own |= {n: g for n, g in gradients(made.network).items() if n.startswith("discriminator")}

    assert found.keys() == own.keys() == dict(made.network.named_parameters()).keys()
    for name, value in own.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name
    assert float(figures["generator_loss"]) == pytest.approx(float(generator_loss.detach()))
    assert float(figures["discriminator_loss"]) == pytest.approx(float(critic_loss.detach()))
    assert float(figures["r1"]) == pytest.approx(float(penalty.detach()))


def test_r1_comes_every_so_many_steps_and_is_that_much_heavier(grey: PictureSet) -> None:
    made = objective(grey, r1=2.0, r1_every=3)
    without = objective(grey, r1=0.0)
    for step in range(4):
        loss, figures = made.loss(SAMPLES, step)
        plain, _ = without.loss(SAMPLES, step)
        extra = 3 * 2.0 / 2 * float(figures["r1"]) if step % 3 == 0 else 0.0
        assert float((loss - plain).detach()) == pytest.approx(extra, abs=1e-4)
        assert ("r1" in figures) == (step % 3 == 0)


def test_r1_of_a_linear_critic_is_the_squared_length_of_its_weights(grey: PictureSet) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 2, 64))

        def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
            return images.flatten(1) @ self.weight

    made = objective(grey, r1=1.0, r1_every=1)
    made.network.discriminator = Linear()  # type: ignore[assignment]
    _, figures = made.loss(SAMPLES, 0)
    assert float(figures["r1"]) == pytest.approx(float(torch.linspace(-1, 2, 64).square().sum()))


def test_samples_are_functions_of_their_seeds_and_classes_matter() -> None:
    torch.manual_seed(0)
    config = GanConfig(size=8, latent=5, width=6, num_classes=4)
    network = Gan(config).generator
    model = TrainedGan(network)
    together = model.sample([1, 2, 3])
    assert together.shape == (3, 3, 8, 8) and together.abs().max() <= 1
    assert torch.allclose(model.sample([2])[0], together[1], atol=1e-6)
    z = torch.randn(1, 5)
    assert not torch.allclose(network(z, torch.tensor([0])), network(z, torch.tensor([3])))
    assert model.likelihood(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), seed=0) == []


def test_labels_that_do_not_fit_are_refused(grey: PictureSet) -> None:
    with pytest.raises(DataError, match=r"has the label \d: num_classes 2 needs 0 to 1"):
        objective(grey, GanConfig(size=8, num_classes=2))
    with pytest.raises(ValueError, match="size 10: must be a multiple of 4"):
        GanConfig(size=10)
