"""Draw the plots of the documentation: python docs/plots.py (needs the `train` extra)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import langevin
from langevin.diffusion.grids import GRIDS, make_grid
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.images.grids import contact_sheet
from langevin.images.hints import HINTS
from langevin.images.masks import mask_of_box
from langevin.images.pixels import to_rgb, to_tensor
from langevin.training.recipes.emoji import PROMPTS

IMAGES = Path(__file__).parent / "images"


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def schedules() -> None:
    """sigma and the share of signal over the training timesteps."""
    figure = new_figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    for name, schedule in {
        "linear": NoiseSchedule.linear(),
        "scaled linear": NoiseSchedule.scaled_linear(),
        "scaled linear, zero terminal SNR": NoiseSchedule.scaled_linear().rescaled_zero_terminal_snr(),
        "cosine": NoiseSchedule.cosine(),
        "sigmoid": NoiseSchedule.sigmoid(),
    }.items():
        left.semilogy(schedule.sigmas, label=name)
        right.plot(schedule.abar.sqrt(), label=name)
    left.set(title="noise level sigma", xlabel="timestep", ylim=(5e-3, 5e3))
    right.set(title="signal sqrt(abar)", xlabel="timestep")
    right.legend(fontsize=8)
    figure.savefig(IMAGES / "schedules.png", dpi=120)


def grids() -> None:
    """Where each grid puts 12 steps on Stable Diffusion's schedule."""
    schedule = NoiseSchedule.scaled_linear()
    figure = new_figure(9, 0.36 * len(GRIDS) + 0.9)
    axes = figure.subplots()
    for row, name in enumerate(reversed(list(GRIDS))):
        sigmas = make_grid(name, schedule, 12)
        sigmas = sigmas[sigmas > 0]
        axes.plot(sigmas, np.full(len(sigmas), row), "|-", markersize=11, linewidth=0.5)
    axes.set(xscale="log", xlabel="sigma", yticks=range(len(GRIDS)), yticklabels=reversed(list(GRIDS)))
    axes.invert_xaxis()
    figure.savefig(IMAGES / "grids.png", dpi=120)


def predictions() -> None:
    """c_skip and |c_out| over sigma for each prediction type."""
    sigma = torch.logspace(-2, 2, 200, dtype=torch.float64)
    figure = new_figure(9, 2.8)
    left, right = figure.subplots(1, 2)
    for prediction in Prediction:
        row = prediction.coefficients(sigma)
        left.semilogx(sigma, row.c_skip, label=prediction.value)
        right.loglog(sigma, row.c_out.abs(), label=prediction.value)
    left.set(title="c_skip", xlabel="sigma")
    right.set(title="|c_out|", xlabel="sigma")
    left.legend(fontsize=8)
    figure.savefig(IMAGES / "predictions.png", dpi=120)


def hints() -> None:
    """Pictures of the packaged model, seeds 0 to 3, each with its hints."""
    model = langevin.load()
    pictures = [model.generate(prompt, seed=seed).images[0] for seed, prompt in enumerate(PROMPTS[:4])]
    cells = [make(picture) for picture in pictures for make in (to_rgb, *HINTS.values())]
    _sheet(cells, 1 + len(HINTS), "hints.png")


def from_pictures() -> None:
    """A picture at four strengths; one repainted in a box; one continued to both sides."""
    model = langevin.load()
    apple = model.generate("a red apple", seed=1).images[0]
    cells = [apple]
    cells += [model.img2img(apple, "a green apple", strength=s, seed=2).images[0] for s in (0.3, 0.5, 0.7, 0.9)]
    _sheet(cells, 5, "image-to-image.png")
    side = apple.width
    box = (side // 4, 7 * side // 16, 3 * side // 4, 15 * side // 16)
    mask = Image.fromarray(mask_of_box(side, side, box), "L")
    cells = [apple, mask, *model.inpaint(apple, "a blue heart", box=box, seed=0, count=3).images]
    _sheet(cells, 5, "inpainting.png")
    house = model.generate("a house", seed=3).images[0]
    more = 3 * side // 8
    wide = [model.outpaint(house, "houses", left=more, right=more, feather=f, seed=1).images[0] for f in (0, 4)]
    before = Image.new("RGB", wide[0].size, (224, 224, 224))
    before.paste(house, (more, 0))
    _sheet([before, *wide], 3, "outpainting.png")


def _sheet(cells: list[Image.Image], columns: int, name: str) -> None:
    contact_sheet(torch.cat([to_tensor(cell) for cell in cells]), columns=columns).save(IMAGES / name)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    schedules()
    grids()
    predictions()
    hints()
    from_pictures()
