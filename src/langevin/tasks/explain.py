"""What a request would do, in numbers, without doing it: no weights are read and no network is run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from langevin.checkpoints.checkpoint import Checkpoint, family_of, meta_networks, task_of
from langevin.checkpoints.loader import Source, as_dtype, locate, open_checkpoint
from langevin.diffusion.prediction import Prediction
from langevin.errors import RequestError
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.chunks import Long, layout
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.prompt import Weighting, parse, schedule, thresholds
from langevin.model.text import TextEncoder
from langevin.networks import strips
from langevin.networks.autoencoder import AutoencoderKL
from langevin.networks.clip import ClipText, ClipTextConfig, TextStates
from langevin.networks.unet import UNetConfig
from langevin.tasks.area import strips_at
from langevin.tasks.from_text import DEFAULT_BATCH, run_numbers, text_to_image
from langevin.tasks.memory import MemoryEstimate, activation_bytes, weight_bytes
from langevin.tasks.opening import with_additions
from langevin.tasks.plan import Plan
from langevin.tasks.prompt_files import take_files
from langevin.tasks.request import GenerateRequest, ModelOptions


@dataclass(frozen=True)
class ExplainedToken:
    id: int
    text: str
    """As the vocabulary writes it: </w> ends a word."""
    weight: float


@dataclass(frozen=True)
class ExplainedText:
    """One of the texts that a prompt consists of; there are several where it has switches."""

    from_sigma: float | None
    """The noise level from which on, downwards, it is used; None: from the beginning."""
    text: str
    chunks: tuple[tuple[ExplainedToken, ...], ...]
    """The tokens of each window of the text network, without start, end and padding."""
    room: int
    """Tokens of text that a window has room for."""


@dataclass(frozen=True)
class Call:
    """One call of the diffusion network."""

    sigma: float
    timestep: float
    """The number that the network is told for this noise level."""
    images: int
    """Pictures in the call; guidance doubles them, for prompt and negative prompt."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a request comes to."""

    model: str
    prediction: str
    """What the network predicts; "unknown" where that is found out with the weights alone."""
    request: Mapping[str, Any]
    """With every default filled in. `seed`, `seeds` and `count` are as asked."""
    prompt: tuple[ExplainedText, ...]
    negative: tuple[ExplainedText, ...]
    sigmas: tuple[float, ...]
    """The grid."""
    timesteps: tuple[float, ...]
    """What the network is told at each level above zero."""
    prior_scale: float
    """Standard deviation of the first state."""
    calls: tuple[Call, ...]
    """Every call of the diffusion network for one batch of pictures, in order."""
    batches: int
    """How often these calls are made."""
    text_calls: int
    """Calls of the text network in the whole run."""
    memory: MemoryEstimate
    notices: tuple[str, ...]

    @property
    def network_calls(self) -> int:
        """Calls of the diffusion network in the whole run."""
        return len(self.calls) * self.batches

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        memory = {**asdict(self.memory), "total": self.memory.total}
        return {**asdict(self), "network_calls": self.network_calls, "memory": memory}


def explain(request: GenerateRequest, options: ModelOptions | None = None) -> Explanation:
    """Plans the request as it would be run, with networks that only note what they are asked.

    Reads the header and the configuration of the model, not its weights (a Hub id is downloaded if it is not in the
    cache). Raises RequestError and CheckpointError as generating does.
    """
    request, files = take_files(request)
    options = files.added_to(options or ModelOptions())
    dtype = as_dtype(options.precision)
    ema: Any = {"auto": "auto", "yes": True, "no": False}[options.ema]
    reading: dict[str, Any] = {"ema": ema, "allow_pickle": options.allow_pickle, "half": dtype.itemsize == 2}
    found = locate(options.model, revision=options.revision, **reading)
    checkpoint = open_checkpoint(found.path, prediction=options.prediction, **reading)
    if checkpoint.encoder is not None:
        raise RequestError(
            f"{found.name} has the text encoder {checkpoint.encoder.kind.name}: only prompts of CLIP's are explained"
        )
    networks = meta_networks(checkpoint.config)
    noting = _NotingUNet(checkpoint.config.unet, dtype, 1 + checkpoint.config.learned_variance)
    bundle = _bundle(checkpoint, found, networks, noting)
    if options.lora or options.embedding or options.vae:
        bundle = _with_additions(bundle, networks, options)

    # The first batch stands for all. Two pictures are planned where there are more, for what is said of several.
    count = len(request.image_seeds())
    batch = min(count, request.batch_size or DEFAULT_BATCH) if request.mode == "fast" else 1
    plan = text_to_image(bundle, request.changed(seed=0, seeds=None, count=min(count, max(batch, 2))))
    first = next(plan.groups())
    calls: list[Call] = []

    def denoiser(x: Tensor, sigma: float) -> Any:
        estimate = plan.denoiser(x, sigma)
        calls.extend(Call(sigma, t, n) for t, n in noting.calls[len(calls) :])  # several, in tiles
        return estimate

    with torch.no_grad():
        for _ in plan.sampler(denoiser, plan.x[first], plan.sigmas, plan.noise.select(first)):
            pass
    text = bundle.text
    assert text is None or isinstance(text, TextEncoder)  # other encoders were refused above
    prediction = checkpoint.config.prediction
    unsaid = [] if prediction else ["the file does not say what the network predicts: generating probes the weights"]
    return Explanation(
        model=found.name,
        prediction=str(prediction or "unknown"),
        request={
            **plan.request.model_dump(mode="json"),
            **request.model_dump(mode="json", include={"seed", "seeds", "count"}),
        },
        prompt=_texts(request.prompt or "", plan, text),
        negative=_texts(request.negative, plan, text),
        sigmas=tuple(plan.sigmas.tolist()),
        timesteps=tuple(plan.record["timesteps"]),
        prior_scale=run_numbers(bundle.diffusion, plan.request).prior_scale,
        calls=tuple(calls),
        batches=-(-count // batch),
        text_calls=text.calls if text else 0,
        memory=_memory(networks, dtype, plan, noting, batch),
        notices=(*unsaid, *plan.notices),
    )


class _NotingUNet(nn.Module):
    """Stands for the diffusion network: answers zero and notes what it was asked."""

    def __init__(self, config: UNetConfig, dtype: torch.dtype, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.outputs = outputs
        """Channels of the answer, as a multiple of the picture's."""
        self.calls: list[tuple[float, int]] = []
        """Timestep and pictures of each."""
        self.size = (0, 0)
        """Height and width of the last."""
        self.context_shape: tuple[int, int] | None = None

    def forward(self, z: Tensor, t: Tensor, *, context: Tensor | None, **_: Any) -> Tensor:
        self.calls.append((float(t[0]), len(z)))
        self.size = (z.shape[2], z.shape[3])
        if context is not None:
            self.context_shape = max(self.context_shape or (0, 0), (context.shape[1], context.shape[2]))
        return torch.zeros_like(z).repeat(1, self.outputs, 1, 1)


class _NotingText(nn.Module):
    """Stands for the text network."""

    def __init__(self, config: ClipTextConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, tokens: Tensor, layer: int) -> TextStates:
        return TextStates(self.weight.new_ones(*tokens.shape, self.config.width), self.weight)


def _bundle(
    checkpoint: Checkpoint, found: Source, networks: Mapping[str, nn.Module], noting: _NotingUNet
) -> ModelBundle:
    """The model of a checkpoint with stand-ins for the networks that a plan or its denoiser runs."""
    config = checkpoint.config
    prediction = config.prediction or Prediction.EPSILON
    text = autoencoder = None
    if config.text is not None and checkpoint.tokenizer is not None:
        stand_in = cast(ClipText, _NotingText(config.text, noting.weight.dtype))
        text = TextEncoder(stand_in, checkpoint.tokenizer, config.text_layer)
    if config.autoencoder is not None:
        autoencoder = Autoencoder(cast(AutoencoderKL, networks["vae"]), config.scale_factor)
    return ModelBundle(
        diffusion=DiffusionModel(
            noting, config.schedule.make(), prediction, config.sigma_data, config.learned_variance
        ),
        autoencoder=autoencoder,
        text=text,
        classes=config.classes,
        info=CheckpointInfo(
            name=found.name,
            source=found.source,
            format=checkpoint.format,
            family=family_of(config.unet),
            task=task_of(config),
            prediction=prediction,
            default_size=(config.defaults.width, config.defaults.height),
            default_steps=config.defaults.steps,
            default_guidance=config.defaults.guidance,
            default_sampler=config.defaults.sampler,
            notices=checkpoint.notices,
        ),
    )


def _with_additions(bundle: ModelBundle, networks: Mapping[str, nn.Module], options: ModelOptions) -> ModelBundle:
    """LoRA and embedding files put into the networks without weights: what does not fit them is refused, and prompts
    have the words. The stand-ins stay."""
    text, unet = bundle.text, networks["unet"]
    if isinstance(text, TextEncoder):
        text = TextEncoder(cast(ClipText, networks["text"]), text.tokenizer, text.layer)
    diffusion = dataclasses.replace(bundle.diffusion, network=unet)
    whole = with_additions(dataclasses.replace(bundle, diffusion=diffusion, text=text), options)
    if isinstance(whole.text, TextEncoder):
        stand_in = cast(ClipText, _NotingText(whole.text.network.config, bundle.diffusion.dtype))
        text = TextEncoder(stand_in, whole.text.tokenizer, whole.text.layer)
    return dataclasses.replace(whole, diffusion=bundle.diffusion, text=text)


def _texts(prompt: str, plan: Plan, encoder: TextEncoder | None) -> tuple[ExplainedText, ...]:
    if encoder is None:
        return ()
    tokenizer = encoder.tokenizer
    weighting = Weighting.of(plan.request.weighting or Weighting.A1111)
    long = Long.of(plan.request.long or Long.CHUNK)
    texts = []
    for sigma, text in thresholds(schedule(prompt, len(plan.sigmas) - 1, weighting), plan.sigmas.tolist()):
        chunks = tuple(
            tuple(
                ExplainedToken(i, tokenizer.token(i), weight)
                for i, weight in zip(chunk.ids[1 : chunk.length + 1], chunk.weights[1:], strict=False)
            )
            for chunk in layout(parse(text, weighting), tokenizer, long).chunks
        )
        texts.append(ExplainedText(None if math.isinf(sigma) else sigma, text, chunks, tokenizer.room))
    return tuple(texts)


def _memory(
    networks: Mapping[str, nn.Module], dtype: torch.dtype, plan: Plan, noting: _NotingUNet, batch: int
) -> MemoryEstimate:
    for network in networks.values():
        network.to(dtype)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    images = max(n for _, n in noting.calls)
    unet, vae = networks["unet"], networks.get("vae")
    told: dict[str, Tensor] = {}
    if noting.context_shape is not None:
        told["context"] = empty(images, *noting.context_shape)
    if noting.config.num_classes is not None:
        told["labels"] = empty(images, dtype=torch.int64)
    activations = {
        "unet": activation_bytes(
            lambda z, t, *values: unet(z, t, **dict(zip(told, values, strict=True))),
            empty(images, plan.x.shape[1], *noting.size),
            empty(images, dtype=torch.float32),
            *told.values(),
        )
    }
    if isinstance(vae, AutoencoderKL):
        in_strips = strips_at(plan.request, plan.request.width or 0, plan.request.height or 0)
        decode = partial(strips.decode, vae) if in_strips else vae.decode
        activations["vae"] = activation_bytes(decode, empty(batch, *plan.x.shape[1:]))
    return MemoryEstimate(
        weights={part: weight_bytes(network) for part, network in networks.items()}, activations=activations
    )
