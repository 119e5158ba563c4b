"""Pictures from a text and a map that stands in the denoiser's further channels: of depth, or of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from langevin.errors import DataError, RequestError
from langevin.images.maps import class_shares, depth_channel, to_classes, to_values
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.tasks.beginning import sized, with_beginning
from langevin.tasks.control_request import DepthRequest, SemanticRequest, SteeredRequest
from langevin.tasks.from_picture import with_start_notice
from langevin.tasks.from_text import HoldsBundle, bundle_of, completed, plan_pictures
from langevin.tasks.labels import further_channels
from langevin.tasks.options import show
from langevin.tasks.pictures import Given, as_input, on_grid, stretched
from langevin.tasks.plan import Plan
from langevin.tasks.setup import Input, Setup

Bring = Callable[[Tensor, int, int], Tensor]
"""A map 1 C H W to the size of the latent."""


def depth_to_image(
    model: ModelBundle | HoldsBundle, depth: Given, request: DepthRequest, *, image: Given | None = None
) -> Plan:
    """Plans pictures from a text and a depth map, with a model of one further channel (Stable Diffusion 2's for depth).

    depth: grey, of 8, 16 or 32 bits, larger is nearer, in any unit: it is resized bicubically to the latent's size and
    brought to [-1, 1] there. image: a picture to begin from, with `request.strength`; its size is then the default.
    Raises RequestError where the model is for something else, DataError where the map cannot be read.
    """
    bundle = bundle_of(model)
    if bundle.info.task != "depth":
        raise _unfit(bundle, "a depth model")
    given = as_input("depth", depth)
    values = _read(given, lambda: to_values(given.picture))[None, None]  # 1 1 H W
    return _plan(bundle, given, values, depth_channel, request, image, "depth-to-image")


def semantic_to_image(
    model: ModelBundle | HoldsBundle, classes: Given, request: SemanticRequest, *, image: Given | None = None
) -> Plan:
    """Plans pictures from a text and a map of classes, with a model that has a further channel for each class (recipe
    `shapes-semantic`).

    classes: grey or indexed, each pixel the number of its class, or with `request.palette` in colours; a class's
    channel is the share of the latent's cell that it covers. image: as in `depth_to_image`. Raises RequestError where
    the model is for something else or the palette is not of its classes, DataError where the map has others.
    """
    bundle = bundle_of(model)
    count = further_channels(bundle)
    if bundle.info.task != "text-to-image" or count < 2:
        raise _unfit(bundle, "a model of maps of classes")
    if request.palette and len(request.palette) != count:
        raise RequestError(f"palette has {len(request.palette)} colours: model {bundle.info.name} has {count} classes")
    given = as_input("map", classes)
    numbers = _read(given, lambda: to_classes(given.picture, count, request.palette))  # H W
    one_hot = F.one_hot(numbers.long(), count).permute(2, 0, 1)[None].float()  # 1 K H W
    return _plan(bundle, given, one_hot, class_shares, request, image, "semantic-to-image")


def _plan(
    bundle: ModelBundle,
    given: Input,
    values: Tensor,
    bring: Bring,
    request: SteeredRequest,
    image: Given | None,
    task: str,
) -> Plan:
    autoencoder, text = bundle.autoencoder, bundle.text
    if autoencoder is None or text is None:
        raise RequestError(f"model {bundle.info.name} has no text encoder or autoencoder: give a whole model")
    if request.prompt is None:
        raise RequestError("prompt is missing: say what to draw; '' says nothing")
    if request.label is not None:
        raise RequestError(f"label {show(request.label)}: model {bundle.info.name} takes a text, leave it out")
    begun = None if image is None else as_input("image", image)
    request = completed(sized(request, begun), bundle)
    width, height, factor = request.width or 0, request.height or 0, autoencoder.downsampling
    if given.picture.size == (width, height):
        values = on_grid(values, factor)  # the margins that are cut from the picture later
    channels = bring(values, -(-height // factor), -(-width // factor))
    setup = Setup(
        beside=Conditioning(concat=channels.to(bundle.diffusion.device)),
        inputs=(given,),
        record={"task": task},
        notices=stretched(f"the {given.role}", given.picture, width, height),
    )
    if begun is None:
        return plan_pictures(bundle, autoencoder, text, request, setup)
    setup = with_beginning(setup, autoencoder, begun, request)
    return with_start_notice(plan_pictures(bundle, autoencoder, text, request, setup), request.strength)


def _read(given: Input, read: Callable[[], Tensor]) -> Tensor:
    """The values of a map; what is wrong with it names it."""
    try:
        return read()
    except DataError as error:
        raise DataError(f"{given.path or f'the {given.role}'}: {error}") from None
    except ValueError as error:  # a colour of the palette that is none
        raise RequestError(f"palette: {error}; give #rrggbb or a name of CSS") from None


def _unfit(bundle: ModelBundle, wanted: str) -> RequestError:
    return RequestError(f"model {bundle.info.name} is for {bundle.info.task}: give {wanted}")
