"""What a file of tensors is, told by the names in it. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from langevin.checkpoints.tensorfile import TensorInfo

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model."
CONTROL = "control_model."
EMA = "model_ema."
DEPTH = "depth_model."
LOW_SCALE = "low_scale_model."

SCHEDULE_BUFFERS = frozenset(
    [
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
        "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
        "lvlb_weights", "logvar",
    ]
)  # fmt: skip
"""Tables that the original training code keeps in its files: all follow from the betas, but `logvar`, a trained or
constant weight of its loss."""

MARKERS = frozenset(["scale_factor", "v_pred", "ztsnr"])
"""The latent scale, where training computed it, and two empty tensors by which fine-tunes say that they predict v and
that their schedule ends at zero signal."""

_POSITIONS = ("embeddings.position_ids",)
_EXTRA_OF_VAE = ("loss.", "model_ema.")
_EXTRA_OF_TEXT = ("logit_scale", "attn_mask", "model.logit_scale", "model.attn_mask", "transformer.logit_scale")


class Kind(StrEnum):
    """What a file of tensors holds."""

    MODEL = "model"
    CONTROLNET = "controlnet"
    CONTROLNET_DIFFUSERS = "controlnet-diffusers"
    T2I_ADAPTER = "t2i-adapter"
    T2I_ADAPTER_DIFFUSERS = "t2i-adapter-diffusers"
    IP_ADAPTER = "ip-adapter"
    UNET_DIFFUSERS = "unet-diffusers"
    VAE = "vae"
    VAE_DIFFUSERS = "vae-diffusers"
    TEXT = "text-encoder"
    TEXT_OPENCLIP = "text-encoder-openclip"
    LORA = "lora"
    EMBEDDING = "embedding"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Contents:
    """A file's tensors by what they belong to. The names in `parts` have lost the part's prefix."""

    kind: Kind
    words: str
    """What it is, for people."""
    parts: Mapping[str, Mapping[str, TensorInfo]] = field(default_factory=dict)
    """unet, vae, text, control: tensors by short name; only the parts that there are."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """What stood before the short names of each part."""
    extras: tuple[str, ...] = ()
    """Known tensors (full names) that none of these networks uses."""
    unknown: tuple[str, ...] = ()
    """Tensors (full names) that have no business in such a file."""

    @property
    def ema(self) -> bool:
        """Whether a moving average of the U-Net is there too."""
        return any(name.startswith(EMA) for name in self.extras)


_PREFIXES = {"unet": UNET, "vae": VAE, "text": TEXT, "control": CONTROL}


def recognise(tensors: Mapping[str, TensorInfo]) -> Contents:
    """What a file is, and which of its tensors belongs to which network."""
    if any(name.startswith(UNET) for name in tensors):
        return _foreign(tensors) or _model(tensors)
    for kind, words, test in _KINDS:
        if any(test(name) for name in tensors):
            return _control(tensors, kind, words) if kind is Kind.CONTROLNET else Contents(kind, words)
    if _is_embedding(tensors):
        return Contents(Kind.EMBEDDING, "a textual-inversion embedding")
    return _foreign(tensors) or Contents(Kind.UNKNOWN, "tensors of no known model", unknown=tuple(tensors))


def _model(tensors: Mapping[str, TensorInfo]) -> Contents:
    parts: dict[str, dict[str, TensorInfo]] = {}
    extras, unknown = [], []
    for name, info in tensors.items():
        part = next((p for p, prefix in _PREFIXES.items() if name.startswith(prefix)), None)
        short = name if part is None else name[len(_PREFIXES[part]) :]
        if part is not None and not _is_extra(part, short):
            parts.setdefault(part, {})[short] = info
        elif part is not None or name.startswith((EMA, DEPTH, LOW_SCALE)) or name in SCHEDULE_BUFFERS | MARKERS:
            extras.append(name)
        else:
            unknown.append(name)
    words = "a Stable Diffusion model with a ControlNet" if "control" in parts else "a Stable Diffusion model"
    return Contents(Kind.MODEL, words, parts, {p: _PREFIXES[p] for p in parts}, tuple(extras), tuple(unknown))


def _control(tensors: Mapping[str, TensorInfo], kind: Kind, words: str) -> Contents:
    prefixed = any(name.startswith(CONTROL) for name in tensors)
    prefix = CONTROL if prefixed else ""
    part = {name[len(prefix) :]: info for name, info in tensors.items() if name.startswith(prefix)}
    rest = [name for name in tensors if not name.startswith(prefix)]
    known = SCHEDULE_BUFFERS | MARKERS
    return Contents(
        kind,
        words,
        {"control": {n: i for n, i in part.items() if n not in known}},
        {"control": prefix},
        tuple(n for n in [*rest, *part] if n in known),
        tuple(n for n in rest if n not in known),
    )


def _is_extra(part: str, name: str) -> bool:
    match part:
        case "vae":
            return name.startswith(_EXTRA_OF_VAE)
        case "text":
            return name.endswith(_POSITIONS) or name in _EXTRA_OF_TEXT
        case _:
            return False


_Test = Callable[[str], object]
_KINDS: tuple[tuple[Kind, str, _Test], ...] = (
    # Before LoRAs: those for faces have such layers beside their own.
    (Kind.IP_ADAPTER, "an IP-Adapter", re.compile(r"^ip_adapter\.\d+\.to_[kv]_ip\.weight$").match),
    (Kind.LORA, "a LoRA", re.compile(r"[._](lora_(down|up|A|B)|to_[qkv]_lora|to_out_lora|lora_linear_layer)\b").search),
    (Kind.LORA, "a LyCORIS adapter (LoHa, LoKr ...)", re.compile(r"\.(hada_w1_a|lokr_w[12](_a)?|oft_blocks)$").search),
    (Kind.LORA, "a LyCORIS adapter of another kind", re.compile(r"^lora_(unet|te)_").match),
    (
        Kind.CONTROLNET,
        "a ControlNet in the original layout",
        re.compile(r"^(control_model\.)?input_hint_block\.").match,
    ),
    (
        Kind.CONTROLNET_DIFFUSERS,
        "a ControlNet in the diffusers layout",
        re.compile(r"^controlnet_cond_embedding\.").match,
    ),
    (
        Kind.T2I_ADAPTER,
        "a T2I-Adapter in the original layout",
        re.compile(r"^body\.0\.(body\.0\.)?block1\.weight$").match,
    ),
    (
        Kind.T2I_ADAPTER_DIFFUSERS,
        "a T2I-Adapter in the diffusers layout",
        re.compile(r"^adapter\.body\.0\.resnets\.").match,
    ),
    (Kind.VAE, "an autoencoder (VAE) in the original layout", re.compile(r"^encoder\.down\.0\.block\.").match),
    (
        Kind.VAE_DIFFUSERS,
        "an autoencoder (VAE) in the diffusers layout",
        re.compile(r"^encoder\.down_blocks\.0\.resnets\.").match,
    ),
    (
        Kind.UNET_DIFFUSERS,
        "a U-Net in the diffusers layout",
        re.compile(r"^down_blocks\.0\.resnets\.0\.time_emb_proj\.").match,
    ),
    (
        Kind.TEXT,
        "a CLIP text encoder in the Hugging Face layout",
        re.compile(r"^(text_model\.)?embeddings\.token_embedding\.weight$").match,
    ),
    (Kind.TEXT_OPENCLIP, "a CLIP text encoder in OpenCLIP's layout", re.compile(r"^transformer\.resblocks\.0\.").match),
)

_FOREIGN: tuple[tuple[str, _Test], ...] = (
    ("Stable Diffusion XL", re.compile(r"^conditioner\.embedders\.|^model\.diffusion_model\.label_emb\.0\.0\.").match),
    ("Stable Diffusion 3", re.compile(r"^(model\.diffusion_model\.)?joint_blocks\.").match),
    ("FLUX", re.compile(r"^(model\.diffusion_model\.)?double_blocks\.").match),
    ("Stable Cascade", re.compile(r"^(model\.diffusion_model\.)?down_blocks\.0\.0\.channelwise\.").match),
    ("a diffusion transformer", re.compile(r"^(model.diffusion_model.)?(t_embedder|adaln_single)\.").match),
    ("a video diffusion model", re.compile(r"time_stack|temporal_transformer|motion_modules").search),
    ("an SDXL refiner or unCLIP model", re.compile(r"^embedder\.model\.|^noise_augmentor\.").match),
    ("a language model", re.compile(r"^(model\.)?layers\.\d+\.self_attn\.|^lm_head\.|^transformer\.h\.\d+\.").match),
    ("a T5 text encoder", re.compile(r"^encoder\.block\.0\.layer\.0\.SelfAttention\.").match),
    ("a T2I-Adapter for style", re.compile(r"^style_embedding$").match),
    ("an upscaler network (ESRGAN)", re.compile(r"^(model\.1\.sub|body|conv_body|RRDB_trunk)\.").match),
)  # fmt: skip


def _foreign(tensors: Mapping[str, TensorInfo]) -> Contents | None:
    for words, test in _FOREIGN:
        if any(test(name) for name in tensors):
            return Contents(Kind.FOREIGN, words)
    return None


def _is_embedding(tensors: Mapping[str, TensorInfo]) -> bool:
    """One tensor of a few vectors as wide as a text encoder: nothing else is so small."""
    return "emb_params" in tensors or (
        len(tensors) == 1 and all(len(i.shape) in (1, 2) and i.shape[-1] in (768, 1024, 1280) for i in tensors.values())
    )
