"""The conventions by which other programs make their pictures.

The same model, prompt, seed and solver give a different picture in every program, because each places the noise
levels, tells the network the time, scales the first noise and ends the run in its own way. Here every such choice is
a named value in a table (`conventions`, `programs`); `resolve` turns one program's row into plain numbers (a grid, a
scale, a map from noise level to timestep) that any sampler takes. No sampler knows that another program exists.

The page docs/compat.md lists the conventions side by side, with the known flaws that they reproduce.
"""

from langevin.diffusion.compat.conventions import (
    Between,
    Conventions,
    ImageToImage,
    Last,
    Placement,
    Prior,
    SamplerRule,
    Spacing,
    Times,
)
from langevin.diffusion.compat.programs import COMPAT
from langevin.diffusion.compat.resolve import Resolved, Timetable, image_to_image_steps, resolve

__all__ = [
    "COMPAT",
    "Between",
    "Conventions",
    "ImageToImage",
    "Last",
    "Placement",
    "Prior",
    "Resolved",
    "SamplerRule",
    "Spacing",
    "Times",
    "Timetable",
    "image_to_image_steps",
    "resolve",
]
