"""Pictures that tasks start from: read, measured against the request, encoded."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from langevin.diffusion.noise import Noise
from langevin.errors import RequestError
from langevin.images.pixels import open_picture, to_rgb, to_tensor
from langevin.model.autoencoder import Autoencoder
from langevin.tasks.setup import Input

Given = Image.Image | Input | str | os.PathLike[str]
"""A picture as tasks take it: itself, or where it is. Of a file the name is written into what is made from it."""


def read_input(role: str, path: str | os.PathLike[str]) -> Input:
    """A picture from a file, for a task. role: as in `Input`. Raises DataError as `open_picture` does."""
    return Input(role, open_picture(path), path)


def as_input(role: str, picture: Given) -> Input:
    """A picture that a task was called with, by the name of its role there."""
    match picture:
        case Input():
            return Input(role, picture.picture, picture.path)
        case Image.Image():
            return Input(role, picture)
        case _:
            return read_input(role, picture)


def on_grid(picture: Tensor, factor: int) -> Tensor:
    """A picture B C H W with its edges repeated outwards until both sides are multiples of `factor`: as much on the
    left as on the right but for one, as plans cut it away after decoding."""
    height, width = picture.shape[-2:]
    down, right = -height % factor, -width % factor
    if not (down or right):
        return picture
    return F.pad(picture, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")


@torch.no_grad()
def encode_picture(autoencoder: Autoencoder | None, picture: Image.Image | Tensor) -> Tensor:
    """Clean latents 1 C h w, float32, of a picture of any mode or of 1 3 H W in [-1, 1]: the mean of the posterior.

    Any size: sides that are no multiples of the latent's cell are made so by `on_grid`. Without an autoencoder, of a
    model of pixels, the pixels themselves.
    """
    pixels = picture if isinstance(picture, Tensor) else to_tensor(picture)
    if autoencoder is None:
        return pixels
    return autoencoder.encode(on_grid(pixels, autoencoder.downsampling).to(autoencoder.device))


@torch.no_grad()
def encode_sampled(autoencoder: Autoencoder, pixels: Tensor, seeds: Sequence[int], draw: int = 0) -> Tensor:
    """Latents N C h w of a picture 1 3 H W, a sample of the posterior for each seed, with the number `draw` that its
    stream gives: how diffusers encodes what it starts from."""
    f = autoencoder.downsampling
    padded = on_grid(pixels, f)
    shape = (autoencoder.latent_channels, padded.shape[-2] // f, padded.shape[-1] // f)
    noise = Noise(seeds, shape, device=autoencoder.device, skipped=(draw, 0)).initial()
    return autoencoder.encode(padded.to(autoencoder.device), noise)


def same_size(role: str, picture: Image.Image, width: int, height: int) -> None:
    """RequestError unless the picture has the size of the one that is worked on."""
    if picture.size != (width, height):
        raise RequestError(
            f"the {role} has {picture.width} x {picture.height} pixels, the picture {width} x {height}: make them equal"
        )


def resized(role: str, picture: Image.Image, width: int, height: int) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture brought to another size by Lanczos' filter, and a notice where its proportions change."""
    if picture.size == (width, height):
        return picture, ()
    fitted = to_rgb(picture).resize((width, height), Image.Resampling.LANCZOS)
    return fitted, stretched(role, picture, width, height)


def stretched(role: str, picture: Image.Image, width: int, height: int) -> tuple[str, ...]:
    """A notice where a picture of other proportions is brought to a size."""
    if picture.width * height == picture.height * width:
        return ()
    return (f"{role}: {picture.width} x {picture.height} pixels are stretched to {width} x {height}",)
