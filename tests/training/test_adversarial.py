"""The autoencoder with a discriminator: one loss with the right gradients, a late start, exact resume."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.training.test_loop import assert_same
from torch import Tensor, nn

from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.discriminator import DiscriminatorConfig, PatchDiscriminator
from langevin.training.config import LoopConfig
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.loop import train
from langevin.training.objectives.adversarial import AdversarialConfig, Adversaries, adaptive_weight
from langevin.training.objectives.autoencoder import AutoencoderObjective
from langevin.training.text_to_image import AutoencoderStage

CODEC = AutoencoderConfig(base_channels=32, channel_mult=(1, 1), num_res_blocks=1, latent_channels=2)
ADVERSARIAL = AdversarialConfig(network=DiscriminatorConfig(base_channels=8, layers=1), weight=0.7, start=3)
LOOP = LoopConfig(
    steps=6, batch_size=2, learning_rate=1e-3, warmup=1, weight_decay=0.0, log_every=1, sample_every=6,
    save_every=100, precision="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(shapes: Path) -> PictureSet:
    return read_data(shapes, DataConfig(size=16))


def objective(data: PictureSet, adversarial: AdversarialConfig | None = ADVERSARIAL) -> AutoencoderObjective:
    torch.manual_seed(5)
    return AutoencoderObjective(
        AutoencoderKL(CODEC), data, seed=0, kl_weight=1e-4, edge_weight=1.0, device="cpu", adversarial=adversarial
    )


BATCH = [(0, 3), (0, 8)]


def parts(made: AutoencoderObjective) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    module = made.module
    assert isinstance(module, Adversaries)
    return list(module.codec.parameters()), list(module.discriminator.parameters())


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


def test_neither_term_moves_the_other_side(data: PictureSet) -> None:
    made = objective(data)
    codec, judge = parts(made)
    assert made.adversarial is not None
    images = data.images([3, 8])
    output = made.network.decode(made.network.moments(images)[0])
    last = made.network.decoder.conv_out.weight
    terms = made.adversarial.terms(images, output, F.l1_loss(output, images), last)
    assert all(g is None for g in gradients(terms.generator, judge))
    assert all(g is None for g in gradients(terms.discriminator, codec))
    decoder = [p for n, p in made.network.named_parameters() if n.startswith("decoder.")]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(terms.generator, [last, *decoder[:2]]))
    # Within the hinges' margin the last bias is pulled up and down alike.
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(terms.discriminator, judge[:-1]))


def test_the_one_loss_has_the_gradients_of_both_games(data: PictureSet) -> None:
    """Written out as two separate losses, with the other side frozen by hand."""
    made = objective(data)
    codec, judge = parts(made)
    loss, figures = made.loss(BATCH, step=3)
    together = gradients(loss, [*codec, *judge])

    plain = objective(data, None)
    reconstruction, _ = plain.loss(BATCH, step=3)
    without = gradients(reconstruction, list(plain.network.parameters()))

    output = captured(made)
    network = made.module.discriminator  # type: ignore[union-attr]
    for p in judge:
        p.requires_grad_(False)
    wanted = -network(output).mean()
    generator = gradients(wanted, codec)
    for p in judge:
        p.requires_grad_(True)
    hinge = (F.relu(1 - network(data.images([3, 8]))).mean() + F.relu(1 + network(output.detach())).mean()) / 2
    discriminator = gradients(hinge, judge)

    scale = ADVERSARIAL.weight * float(figures["adaptive_weight"])
    assert scale > 0
    for total, a, b in zip(together, [*without, *discriminator], [*generator, *[None] * len(judge)], strict=True):
        expected = (0 if a is None else a) + (0 if b is None else scale * b)
        assert total is not None and torch.allclose(total, torch.as_tensor(expected), rtol=1e-4, atol=1e-7)


def captured(made: AutoencoderObjective) -> Tensor:
    """The output that `loss` judges at step 3."""
    found: list[Tensor] = []
    decode = made.network.decode
    made.network.decode = lambda z: found.append(decode(z)) or found[-1]  # type: ignore[method-assign,func-returns-value]
    made.loss(BATCH, step=3)
    made.network.decode = decode  # type: ignore[method-assign]
    return found[0]


def test_the_adaptive_weight_is_the_ratio_of_the_gradients() -> None:
    last = nn.Parameter(torch.tensor([1.0, 2.0]))
    # d/dw of 3 w0 + 4 w1 is (3, 4), of norm 5; of w0^2 at 1 it is 2.
    weight = adaptive_weight((last * torch.tensor([3.0, 4.0])).sum(), last[0] ** 2, last)
    assert float(weight) == pytest.approx(5 / (2 + 1e-4), rel=1e-6) and not weight.requires_grad
    assert float(adaptive_weight(last.sum(), last[0] * 0, last)) == 1e4  # sqrt(2) / 1e-4 is beyond the bound


def test_before_its_start_the_discriminator_is_not_there(data: PictureSet) -> None:
    made, plain = objective(data), objective(data, None)
    for step in (0, 2):
        a, figures = made.loss(BATCH, step)
        b, _ = plain.loss(BATCH, step)
        assert torch.equal(a, b) and float(figures["adaptive_weight"]) == 0
    judge = parts(made)[1]
    assert all(g is None for g in gradients(made.loss(BATCH, 2)[0], judge))
    assert all(g is not None for g in gradients(made.loss(BATCH, 3)[0], judge))
    assert float(made.loss(BATCH, 3)[1]["adaptive_weight"]) > 0


def test_without_a_discriminator_nothing_is_new(data: PictureSet) -> None:
    plain = objective(data, None)
    assert plain.module is plain.network and set(plain.facts) == {"data", "kl_weight", "edge_weight"}


def test_squares_of_the_errors_are_added_with_their_weight(data: PictureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: torch.zeros(len(z), 3, 16, 16))  # the errors: pictures
    plain, squared = objective(data, None), objective(data, None)
    squared.square_weight = 2.0
    assert squared.facts == {**plain.facts, "square_weight": 2.0}
    (without, figures), (loss, _) = plain.loss(BATCH, 0), squared.loss(BATCH, 0)
    mean_square = float(data.views(BATCH, 0).square().mean())
    assert float(figures["psnr"]) == pytest.approx(-10 * math.log10(mean_square / 4), rel=1e-4)
    assert float(loss - without) == pytest.approx(2 * mean_square, rel=1e-4)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_stopped_before_or_after_the_start_goes_on_to_the_same_state(
    data: PictureSet, tmp_path: Path, stop: int
) -> None:
    for _ in train(objective(data), LOOP, tmp_path / "whole", seed=0):
        pass
    steps = train(objective(data), LOOP, tmp_path / "cut", seed=0)
    for step in steps:
        if step.step == stop:
            steps.close()
    for _ in train(objective(data), LOOP, tmp_path / "cut", seed=0, resume=True):
        pass
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_the_codec_is_found_beside_its_discriminator(data: PictureSet, tmp_path: Path) -> None:
    made = objective(data)
    before = [p.clone() for p in parts(made)[1]]
    for _ in train(made, LOOP, tmp_path / "autoencoder", seed=0):
        pass
    assert any(not torch.equal(a, b) for a, b in zip(before, parts(made)[1], strict=True))
    codec = AutoencoderStage(network=CODEC, adversarial=ADVERSARIAL, loop=LOOP).trained(tmp_path)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "autoencoder" / "checkpoints" / "00000006" / "ema.safetensors")
    assert {name.split(".")[0] for name in saved} == {"codec", "discriminator"}
    assert all(torch.equal(value, saved[f"codec.{name}"]) for name, value in codec.state_dict().items())


def test_a_discriminator_sees_patches_of_the_stated_size() -> None:
    for layers, field in ((1, 16), (2, 34)):
        network = PatchDiscriminator(DiscriminatorConfig(base_channels=8, layers=layers))
        for module in network.main:  # what one output depends on; the norms would spread it over the whole picture
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda x: x  # type: ignore[method-assign]
        images = torch.zeros(1, 3, 64, 64, requires_grad=True)
        scores = network(images)
        scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
        assert images.grad is not None
        rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        assert int(rows.max() - rows.min()) + 1 == field
    config = DiscriminatorConfig(base_channels=8, layers=2)
    assert PatchDiscriminator(config)(torch.zeros(1, 3, config.least_size, 40)).shape == (1, 1, 1, 8)
    with pytest.raises(ValueError, match="takes at least 12 pixels"):
        PatchDiscriminator(config)(torch.zeros(1, 3, 11, 40))


def test_what_is_said_of_a_picture_does_not_depend_on_its_batch() -> None:
    network = PatchDiscriminator(DiscriminatorConfig(base_channels=8, layers=1))
    images = torch.randn(3, 3, 16, 16)
    assert torch.allclose(network(images)[1], network(images[1:2])[0], atol=1e-6)


def test_a_discriminator_learns_to_tell_real_from_made() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig(base_channels=8, layers=1))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    real, made = torch.randn(8, 3, 16, 16).clamp(-1, 1), torch.randn(8, 3, 16, 16).clamp(-1, 1).roll(1, -1) * 0.3
    for _ in range(25):
        hinge = (F.relu(1 - network(real)).mean() + F.relu(1 + network(made)).mean()) / 2
        optimizer.zero_grad()
        hinge.backward()
        optimizer.step()
    assert float(hinge.detach()) < 0.5 and network(real).mean() > network(made).mean()
