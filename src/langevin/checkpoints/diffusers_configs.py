"""The JSON files of a diffusers folder, read into our configurations and written from them.

Only what is named here is read. A class that is not in a list, or an option with a value that our networks do not have,
is an error that names it; nothing in these files can make anything run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langevin.checkpoints.config import ScheduleConfig
from langevin.checkpoints.jsonfile import Fields
from langevin.checkpoints.sidecar import PREDICTIONS
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError
from langevin.networks.autoencoder import AutoencoderConfig
from langevin.networks.clip import ClipTextConfig
from langevin.networks.unet import UNetConfig

PIPELINES = frozenset(
    [
        "StableDiffusionPipeline", "StableDiffusionPipelineSafe", "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline", "StableDiffusionInpaintPipelineLegacy", "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionUpscalePipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline", "StableDiffusionControlNetInpaintPipeline",
    ]
)  # fmt: skip

SCHEDULERS = frozenset(
    [
        "DDIMScheduler", "DDIMInverseScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler",
        "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
        "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler",
    ]
)  # fmt: skip
"""All share the keys that shape the noise schedule; which solver is named is of no interest."""

_SOLVER_KEYS = frozenset(
    [
        "set_alpha_to_one", "skip_prk_steps", "steps_offset", "clip_sample", "clip_sample_range", "thresholding",
        "dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "variance_type", "interpolation_type",
        "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "sigma_min", "sigma_max", "timestep_type",
        "final_sigmas_type", "solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final",
        "lambda_min_clipped", "predict_x0", "disable_corrector", "solver_p", "original_inference_steps",
        "timestep_scaling", "clip_denoised", "predict_epsilon",
    ]
)  # fmt: skip
_PREDICTION_NAMES = {Prediction.EPSILON: "epsilon", Prediction.V: "v_prediction", Prediction.X0: "sample"}

_UNET_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "center_input_sample": (False,), "flip_sin_to_cos": (True,), "freq_shift": (0,),
    "downsample_padding": (1,), "mid_block_scale_factor": (1,), "act_fn": ("silu", "swish"), "norm_num_groups": (32,),
    "norm_eps": (1e-5,), "resnet_out_scale_factor": (1.0,), "time_embedding_type": ("positional",),
    "conv_in_kernel": (3,), "conv_out_kernel": (3,), "attention_type": ("default",), "dropout": (0.0,),
    "addition_embed_type_num_heads": (64,),
}  # fmt: skip
"""Options that have just these values in our U-Net."""

_CONTROL_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "controlnet_conditioning_channel_order": ("rgb",), "conditioning_embedding_out_channels": ([16, 32, 96, 256],),
}  # fmt: skip

_VAE_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu",), "mid_block_add_attention": (True,),
    "use_quant_conv": (True,), "use_post_quant_conv": (True,),
}  # fmt: skip


# -- reading ----------------------------------------------------------------------------------------------------------


def read_unet(fields: Fields) -> tuple[UNetConfig, int | None]:
    """The U-Net, and the latent's size that it was trained for."""
    fields.require_class("UNet2DConditionModel")
    size = fields.optional("sample_size", int)
    out_channels = fields.get("out_channels", int, 4)
    config = _unet(fields, out_channels, mirrored=True)
    fields.finish(_UNET_NEUTRAL)
    return config, size


def read_controlnet(fields: Fields) -> tuple[UNetConfig, int, bool]:
    """The ControlNet's half of a U-Net, its number of hint channels, and whether its residuals are pooled."""
    fields.require_class("ControlNetModel")
    hint_channels = fields.get("conditioning_channels", int, 3)
    pooled = fields.get("global_pool_conditions", bool, False)
    config = _unet(fields, 4, mirrored=False)
    fields.finish({**_UNET_NEUTRAL, **_CONTROL_NEUTRAL})
    return config, hint_channels, pooled


def _unet(fields: Fields, out_channels: int, *, mirrored: bool) -> UNetConfig:
    widths = fields.integers("block_out_channels")
    down = fields.texts("down_block_types")
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    attention = tuple(fields.choose("down_block_types", name, known) for name in down)
    if mirrored:
        known = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
        up = tuple(fields.choose("up_block_types", name, known) for name in fields.texts("up_block_types"))
        if up != attention[::-1]:
            raise fields.error("up_block_types", "does not mirror down_block_types")
    levels = len(widths)
    if len(attention) != levels or any(w % widths[0] for w in widths):
        raise fields.error("block_out_channels", f"{list(widths)} for {len(attention)} blocks")
    middle = "UNetMidBlock2DCrossAttn"
    fields.choose("mid_block_type", fields.take("mid_block_type", middle), {middle: True})
    shift = fields.get("resnet_time_scale_shift", str, "default")
    cross_only = fields.take("only_cross_attention", False)
    cross_only = [cross_only] * levels if isinstance(cross_only, bool) else cross_only
    if not isinstance(cross_only, list) or len(cross_only) != levels or not all(type(c) is bool for c in cross_only):
        raise fields.error("only_cross_attention", f"{str(cross_only)[:60]} for {levels} levels")
    return fields.made(
        UNetConfig,
        in_channels=fields.get("in_channels", int, 4),
        out_channels=out_channels,
        model_channels=widths[0],
        channel_mult=tuple(w // widths[0] for w in widths),
        num_res_blocks=fields.get("layers_per_block", int, 2),
        attention_levels=attention,
        middle_attention=True,
        **_heads(fields, widths, attention),
        context_channels=fields.get("cross_attention_dim", int, 1280),
        transformer_depth=fields.get("transformer_layers_per_block", int, 1),
        linear_projection=fields.get("use_linear_projection", bool, False),
        cross_attention_only_levels=tuple(cross_only) if any(cross_only) else (),
        num_classes=fields.optional("num_class_embeds", int),
        scale_shift_norm=fields.choose("resnet_time_scale_shift", shift, {"default": False, "scale_shift": True}),
        upcast_attention=fields.get("upcast_attention", bool, False),
    )


def _heads(fields: Fields, widths: tuple[int, ...], attention: Sequence[bool]) -> dict[str, int | None]:
    """`attention_head_dim` is the number of heads in these files, whatever its name says.

    Only levels with attention count, and the last one, which the middle block has in common.
    """
    misnamed = fields.take("attention_head_dim", 8)
    value = fields.take("num_attention_heads", None)
    value = misnamed if value is None else value
    heads = [value] * len(widths) if isinstance(value, int) else value
    if (
        not isinstance(heads, list)
        or len(heads) != len(widths)
        or not all(type(h) is int and h > 0 and w % h == 0 for h, w in zip(heads, widths, strict=True))
    ):
        raise fields.error("attention_head_dim", f"{str(value)[:60]} for levels of {list(widths)} channels")
    used = [(w, h) for w, h, a in zip(widths, heads, (*attention[:-1], True), strict=True) if a]
    channels = {w // h for w, h in used}
    if len({h for _, h in used}) == 1:
        return {"num_heads": used[0][1], "head_channels": None}
    if len(channels) == 1:
        return {"num_heads": None, "head_channels": channels.pop()}
    raise fields.error("attention_head_dim", f"{heads}: neither equal heads nor heads of equal width")


def read_vae(fields: Fields) -> tuple[AutoencoderConfig, float]:
    """The autoencoder and the factor of its latents (0.18215 where the file of 2022 does not say)."""
    fields.require_class("AutoencoderKL")
    widths = fields.integers("block_out_channels")
    for name, one in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        for block in fields.texts(name):
            fields.choose(name, block, {one: True})
    if any(w % widths[0] for w in widths):
        raise fields.error("block_out_channels", f"{list(widths)}: not multiples of the first")
    scale = float(fields.get("scaling_factor", (int, float), 0.18215))
    in_channels, out_channels = (fields.get(name, int, 3) for name in ("in_channels", "out_channels"))
    if in_channels != out_channels or not 0 < scale < 1e6:
        raise fields.error("scaling_factor", f"{scale} with {in_channels} channels in and {out_channels} out")
    config = fields.made(
        AutoencoderConfig,
        in_channels=in_channels,
        latent_channels=fields.get("latent_channels", int, 4),
        base_channels=widths[0],
        channel_mult=tuple(w // widths[0] for w in widths),
        num_res_blocks=fields.get("layers_per_block", int, 1),
        groups=fields.get("norm_num_groups", int, 32),
    )
    for name in ("sample_size", "force_upcast"):
        fields.take(name, None)
    fields.finish(_VAE_NEUTRAL)
    return config, scale


def read_text(fields: Fields) -> ClipTextConfig:
    """The text encoder. Its file is full of options for generating text, which are passed over."""
    kind = fields.get("model_type", str, "clip_text_model")
    if kind != "clip_text_model":
        raise fields.error("model_type", f"{kind!r}; only 'clip_text_model' is known")
    for name in fields.take("architectures", ["CLIPTextModel"]) or []:
        fields.choose("architectures", name, {"CLIPTextModel": 1, "CLIPTextModelWithProjection": 1})
    if fields.get("layer_norm_eps", (int, float), 1e-5) != 1e-5:
        raise fields.error("layer_norm_eps", "only 1e-5 is known")
    vocabulary = fields.get("vocab_size", int, 49408)
    eos = fields.optional("eos_token_id", int)
    activation = fields.get("hidden_act", str, "quick_gelu")
    return fields.made(
        ClipTextConfig,
        vocabulary=vocabulary,
        width=fields.get("hidden_size", int, 512),
        layers=fields.get("num_hidden_layers", int, 12),
        heads=fields.get("num_attention_heads", int, 8),
        mlp_width=fields.get("intermediate_size", int, 2048),
        positions=fields.get("max_position_embeddings", int, 77),
        activation=fields.choose("hidden_act", activation, {"quick_gelu": "quick_gelu", "gelu": "gelu"}),
        projection=None,
        # Files of 2022 say 2, a value that no CLIP tokenizer has; readers of them take the highest id.
        eos_token=min(vocabulary - 1, ClipTextConfig().eos_token) if eos in (2, None) else eos,
    )


def read_schedule(fields: Fields) -> tuple[ScheduleConfig, Prediction, list[str]]:
    """Noise schedule, prediction type, and notices of what was passed over."""
    fields.require_class(*SCHEDULERS)
    steps = fields.get("num_train_timesteps", int, 1000)
    start, end = (float(fields.get(n, (int, float), d)) for n, d in (("beta_start", 1e-4), ("beta_end", 0.02)))
    rule = fields.get("beta_schedule", str, "linear")
    kinds = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
    kind: Any = fields.choose("beta_schedule", rule, kinds)
    betas = fields.take("trained_betas", None)
    zero = fields.get("rescale_betas_zero_snr", bool, False)
    if fields.take("use_flow_sigmas", False):
        raise fields.error("use_flow_sigmas", "a flow model, which Stable Diffusion 1.x / 2.x is not")
    if betas is not None:
        if not isinstance(betas, list) or not all(isinstance(b, int | float) and 0 < b < 1 for b in betas):
            raise fields.error("trained_betas", "expected a list of numbers between 0 and 1")
        kind, steps = "betas", len(betas)
    elif kind == "sigmoid":
        import torch

        ramp = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
        kind, betas = "betas", (ramp * (end - start) + start).tolist()
    name = fields.get("prediction_type", str, "epsilon")
    prediction = Prediction(fields.choose("prediction_type", name, PREDICTIONS))
    config = fields.made(
        ScheduleConfig,
        kind=kind,
        steps=steps,
        beta_start=start,
        beta_end=end,
        betas=None if betas is None else tuple(map(float, betas)),
        zero_terminal_snr=zero,
    )
    try:
        config.make()
    except ValueError as error:
        raise fields.error("beta_schedule", str(error)) from None
    ignored = [name for name in fields.rest() if name not in _SOLVER_KEYS]
    return config, prediction, [f"{fields.label}: ignored {', '.join(ignored)}"] if ignored else []


# -- writing ----------------------------------------------------------------------------------------------------------

_VERSION = "0.38.0"
"""The diffusers version stated in what we write: the oldest that we test against."""


def unet_json(config: UNetConfig, sample_size: int) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        **_unet_json(config),
        "out_channels": config.out_channels,
        "sample_size": sample_size,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention_levels)],
    }


def controlnet_json(config: UNetConfig, hint_channels: int, *, pooled: bool = False) -> dict[str, Any]:
    return {
        "_class_name": "ControlNetModel",
        **_unet_json(config),
        "conditioning_channels": hint_channels,
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "controlnet_conditioning_channel_order": "rgb",
        **({"global_pool_conditions": True} if pooled else {}),
    }


def _unet_json(config: UNetConfig) -> dict[str, Any]:
    if config.context_channels is None or not config.middle_attention:
        raise CheckpointError("a U-Net without context or without attention in the middle has no diffusers form here")
    widths = [config.model_channels * mult for mult in config.channel_mult]
    heads = [width // config.head_channels for width in widths] if config.head_channels else config.num_heads
    return {
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": config.context_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention_levels],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "num_class_embeds": config.num_classes,
        "only_cross_attention": list(config.cross_attention_only_levels) or False,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "transformer_layers_per_block": config.transformer_depth,
        "upcast_attention": config.upcast_attention,
        "use_linear_projection": config.linear_projection,
    }


def vae_json(config: AutoencoderConfig, scale_factor: float, sample_size: int) -> dict[str, Any]:
    levels = len(config.channel_mult)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "block_out_channels": [config.base_channels * mult for mult in config.channel_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": config.groups,
        "out_channels": config.in_channels,
        "sample_size": sample_size,
        "scaling_factor": scale_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_json(config: ClipTextConfig, *, bos: int, pad: int) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": config.eos_token,
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": config.positions,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": pad,
        "projection_dim": config.projection or config.width,
        "vocab_size": config.vocabulary,
    }


def schedule_json(config: ScheduleConfig, prediction: Prediction) -> dict[str, Any]:
    """A DDIM scheduler's file: the class that knows zero terminal SNR as well."""
    if prediction not in _PREDICTION_NAMES:
        raise CheckpointError(
            f"prediction {prediction}: a diffusers folder of Stable Diffusion knows epsilon, v and x0"
        )
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": _VERSION,
        "beta_end": config.beta_end,
        "beta_schedule": {"cosine": "squaredcos_cap_v2", "betas": "linear"}.get(config.kind, config.kind),
        "beta_start": config.beta_start,
        "clip_sample": False,
        "num_train_timesteps": config.steps,
        "prediction_type": _PREDICTION_NAMES[prediction],
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if config.zero_terminal_snr else "leading",
        "trained_betas": None if config.betas is None else list(config.betas),
    }
