"""What a caption decides: how much of a noisy picture the denoiser gets wrong, told what it shows or something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from langevin.evaluation.run import Pictures
from langevin.evaluation.whole.part import Part
from langevin.evaluation.whole.plots import Panel, plot_lines
from langevin.evaluation.whole.subject import Subject
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning

LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 14.0)
"""Noise levels sigma, for latents of about unit deviation; those outside the schedule's are left out."""
OWN, OTHERS, NONE = "own", "another's", "none"


def captions(subject: Subject) -> Part:
    """The error of x0 at each noise level with the picture's own caption, with another picture's and with none.

    The mean square of what the denoiser gets wrong, as a share of the latents' own variance: 1 is what the mean of all
    pictures would get. Where the three are equal, the caption is not read; how far they lie apart is what it decides.
    """
    schedule = subject.bundle.diffusion.schedule
    levels = [sigma for sigma in LEVELS if schedule.sigma_min <= sigma <= schedule.sigma_max]
    sets: dict[str, tuple[Pictures, Sequence[int]]] = {
        "training pictures": (subject.train, subject.halves[0][: subject.scale.sweep_samples]),
        "held-out pictures": (subject.held_out, subject.held_out_halves[0][: subject.scale.sweep_samples]),
    }
    points = []
    panels = []
    for name, (data, places) in sets.items():
        said = [subject.styled(data.records[i]) for i in places]
        lines = caption_errors(
            subject.bundle, data.pictures[list(places)], said, levels, seed=subject.scale.seed,
            batch=subject.scale.batch,
        )  # fmt: skip
        panels.append(Panel(name, lines))
        for i, sigma in enumerate(levels):
            errors = {told: values[i] for told, values in lines.items()}
            points.append({"set": name, "pictures": len(places), "sigma": sigma, **errors})
    plot_lines(subject.image("captions"), levels, "noise level sigma", panels, log=True)
    return Part(details={"points": points})


@torch.no_grad()
def caption_errors(
    bundle: ModelBundle,
    pictures: Tensor,
    said: Sequence[str],
    levels: Sequence[float],
    *,
    seed: int = 0,
    batch: int = 16,
) -> Mapping[str, list[float]]:
    """For `own`, `another's` and `none` the error of x0 at each level, as a share of the latents' variance.

    pictures: uint8 N 3 H W, said: their captions, N of at least 2. Each picture has the same noise at every level and
    with every caption; another's caption is that of the nearest later picture with other words.
    """
    assert bundle.autoencoder is not None and bundle.text is not None
    model, device = bundle.diffusion, bundle.diffusion.device
    ways = {OWN: list(said), OTHERS: [_another(said, i) for i in range(len(said))], NONE: [""] * len(said)}
    states = {words: bundle.text.states([words]) for words in dict.fromkeys(w for way in ways.values() for w in way)}
    latents = torch.cat(
        [bundle.autoencoder.encode((part.float() / 127.5 - 1).to(device)) for part in pictures.split(batch)]
    )
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    variance = latents.double().var().item()
    errors: dict[str, list[float]] = {}
    for told, words in ways.items():
        errors[told] = []
        for sigma in levels:
            total = 0.0
            for start in range(0, len(latents), batch):
                some = slice(start, start + batch)
                cond = Conditioning(context=torch.cat([states[w] for w in words[some]]))
                found = model.denoise(latents[some] + sigma * noise[some], sigma, cond).x0
                total += (found - latents[some]).double().square().sum().item()
            errors[told].append(total / latents.numel() / variance)
    return errors


def _another(said: Sequence[str], place: int) -> str:
    """The caption of the next picture, around the end, that is called something else; its own where all are."""
    turned = [*said[place:], *said[:place]]
    return next((words for words in turned if words != said[place]), said[place])
