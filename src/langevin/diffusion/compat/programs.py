"""Each program's conventions as rows of tables. Facts were read in the programs' sources; docs/compat.md says where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

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
from langevin.diffusion.grids import GRIDS
from langevin.diffusion.noise import IntervalNoise
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SAMPLERS

_BROWNIAN_NOTICE = (
    "this program draws its Brownian path from the torchsde library: the method is the same, the noise is not"
)


def _langevin() -> Conventions:
    grids = {name: Placement(curve=name) for name in GRIDS}
    return Conventions(
        name="langevin",
        samplers={name: SamplerRule(grid="trailing", grids=grids) for name in SAMPLERS},
        interval_noise=IntervalNoise.PATH,
        weighting="a1111",
        long_prompts="chunk",
        image_to_image=ImageToImage.LANGEVIN,
    )


def _diffusers() -> Conventions:
    """Of version 0.42, for a scheduler made with `from_config` from a published Stable Diffusion configuration
    (steps_offset 1, set_alpha_to_one false, skip_prk_steps true, everything else the class's default)."""

    # Single-step samplers in variance-preserving coordinates.
    def single(last: Last) -> dict[str, Placement]:
        common = Placement(times=Times.TABLE, prior=Prior.TOTAL, last=last)
        return {
            "leading": replace(common, spacing=Spacing.LEADING),
            "linspace": replace(common, spacing=Spacing.LINSPACE_UP_ROUNDED),
            "trailing": replace(common, spacing=Spacing.TRAILING),
        }

    ddim = single(Last.SIGMA_MIN)
    ddim = {"leading": ddim["leading"], "trailing": replace(ddim["trailing"], divisors_only=True)}

    # Samplers that came from k-diffusion: sigma itself is interpolated, and a curve spans the levels of LINSPACE_UP.
    table = Placement(between=Between.SIGMA, times=Times.TABLE)
    curve = Placement(curve_ends=Spacing.LINSPACE_UP)
    k = {
        "linspace": replace(table, spacing=Spacing.LINSPACE_UP),
        "leading": replace(table, spacing=Spacing.LEADING, prior=Prior.TOTAL),
        "trailing": replace(table, spacing=Spacing.TRAILING),
    }
    curves = {name: replace(curve, curve=name) for name in ("karras", "exponential", "beta")}
    # Rounded at the grid's own levels, not at the midpoints.
    dpm2_curves = curves | {"karras": replace(curves["karras"], times=Times.ROUNDED)}

    # Multistep samplers in variance-preserving coordinates: whole timesteps, of N+1 points.
    whole = Placement(times=Times.TABLE, prior=Prior.TOTAL)
    multistep = {
        "linspace": replace(whole, spacing=Spacing.LINSPACE_OPEN_ROUNDED),
        "leading": replace(whole, spacing=Spacing.LEADING_OPEN),
        "trailing": replace(whole, spacing=Spacing.TRAILING),
        "karras": Placement(curve="karras", times=Times.ROUNDED, prior=Prior.TOTAL),
        "exponential": Placement(curve="exponential", times=Times.TRUNCATED, prior=Prior.TOTAL),
        "beta": Placement(curve="beta", times=Times.TRUNCATED, prior=Prior.TOTAL),
    }
    lcm = {"distilled": Placement(spacing=Spacing.DISTILLED, times=Times.TABLE, prior=Prior.TOTAL)}
    return Conventions(
        name="diffusers",
        samplers={
            "ddpm": SamplerRule(grid="leading", grids=single(Last.ZERO)),
            "ddim": SamplerRule(grid="leading", grids=ddim),
            # Averages the network's own output, and converts the average.
            "plms": SamplerRule(
                grid="leading", grids=ddim, options_for={Prediction.V: {"remember": "v"}}, one_step="euler"
            ),
            "euler": SamplerRule(grid="linspace", grids=k | curves),
            "euler_ancestral": SamplerRule(grid="linspace", grids=k),
            "heun": SamplerRule(grid="linspace", grids=k | curves),
            "dpm2": SamplerRule(grid="linspace", grids=k | dpm2_curves),
            # On karras it tells the network a rounded time at a grid level and an exact one at a midpoint, and with
            # eta = 1 every midpoint lies on a grid level: no map from level to time does that.
            "dpm2_ancestral": SamplerRule(grid="linspace", grids=k),
            "lms": SamplerRule(grid="linspace", grids=k | curves),
            "dpmpp_sde": SamplerRule(grid="linspace", grids=k | curves, notice=_BROWNIAN_NOTICE),
            "dpmpp_2m": SamplerRule(grid="linspace", grids=multistep),
            "dpmpp_2m_sde": SamplerRule(grid="linspace", grids=multistep),
            "unipc": SamplerRule(grid="linspace", grids=multistep),
            "lcm": SamplerRule(grid="distilled", grids=lcm),
        },
        interval_noise=IntervalNoise.STREAM,
        image_to_image=ImageToImage.DIFFUSERS,
    )


def _a1111() -> Conventions:
    """Of AUTOMATIC1111's web UI 1.10 with noise from the CPU; its default noise comes from the GPU."""
    spacing = {
        "linspace": Placement(spacing=Spacing.LINSPACE),
        "sgm_uniform": Placement(spacing=Spacing.LINSPACE_OPEN),
        "simple": Placement(spacing=Spacing.SIMPLE),
        "ddim_uniform": Placement(spacing=Spacing.STRIDE_INSIDE),
    }
    curves = {name: Placement(curve=name) for name in ("karras", "exponential", "polyexponential", "beta")}
    curves["align_your_steps"] = Placement(curve="align_your_steps", curve_options={"keep_last": True})
    grids = spacing | curves
    shortened = {name: replace(p, discard_penultimate=True) for name, p in grids.items()}
    # Its own DDIM and PLMS never give the lowest timestep to the network: 20 steps are 19.
    stride = {
        "leading": Placement(
            spacing=Spacing.STRIDE_CLIPPED, times=Times.TABLE, prior=Prior.TOTAL, last=Last.OWN, fewest_steps=2
        )
    }
    return Conventions(
        name="a1111",
        samplers={
            "ddim": SamplerRule(grid="leading", grids=stride),
            "plms": SamplerRule(grid="leading", grids=stride),
            "euler": SamplerRule(grid="linspace", grids=grids),
            "euler_ancestral": SamplerRule(grid="linspace", grids=grids),
            "heun": SamplerRule(grid="linspace", grids=grids),
            "dpm2": SamplerRule(grid="karras", grids=shortened),
            "dpm2_ancestral": SamplerRule(grid="karras", grids=shortened),
            "lms": SamplerRule(grid="linspace", grids=grids),
            "dpmpp_2s_ancestral": SamplerRule(grid="karras", grids=grids),
            "dpmpp_2m": SamplerRule(grid="karras", grids=grids),
            "dpmpp_sde": SamplerRule(grid="karras", grids=grids, notice=_BROWNIAN_NOTICE),
            "dpmpp_2m_sde": SamplerRule(grid="exponential", grids=grids, notice=_BROWNIAN_NOTICE),
            "dpmpp_3m_sde": SamplerRule(grid="exponential", grids=shortened, notice=_BROWNIAN_NOTICE),
        },
        interval_noise=IntervalNoise.PATH,
        weighting="a1111",
        long_prompts="chunk",
        own_prompt_lengths=True,
        image_to_image=ImageToImage.A1111,
    )


def _comfyui() -> Conventions:
    """Of ComfyUI in 2025, run on a CPU; on a GPU the noise of the steps comes from there."""
    common = Placement(times=Times.NEAREST, prior=Prior.TOTAL_AT_MAX)
    grids = {
        "simple": replace(common, spacing=Spacing.SIMPLE),
        "linspace": replace(common, spacing=Spacing.LINSPACE),
        "sgm_uniform": replace(common, spacing=Spacing.LINSPACE_OPEN),
        "ddim_uniform": replace(common, spacing=Spacing.STRIDE_INSIDE),
        "karras": replace(common, curve="karras"),
        "exponential": replace(common, curve="exponential"),
        "beta_timesteps": replace(common, curve="beta_timesteps"),
    }
    shortened = {name: replace(p, discard_penultimate=True) for name, p in grids.items()}

    def rule(grids: Mapping[str, Placement] = grids, notice: str = "") -> SamplerRule:
        return SamplerRule(grid="simple", grids=grids, notice=notice)

    return Conventions(
        name="comfyui",
        samplers={
            "ddpm": rule(),
            "ddim": rule(),
            "euler": rule(),
            "euler_ancestral": rule(),
            "heun": rule(),
            "dpm2": rule(shortened),
            "dpm2_ancestral": rule(shortened),
            "lms": rule(),
            "dpmpp_2s_ancestral": rule(),
            "dpmpp_2m": rule(),
            "dpmpp_sde": rule(notice=_BROWNIAN_NOTICE),
            "dpmpp_2m_sde": rule(notice=_BROWNIAN_NOTICE),
            "dpmpp_3m_sde": rule(notice=_BROWNIAN_NOTICE),
            "lcm": rule(),
        },
        interval_noise=IntervalNoise.PATH,
        step_seed_offset=1,
        whole_batch_noise=True,
        weighting="comfyui",
        long_prompts="chunk",
        own_prompt_lengths=True,
        image_to_image=ImageToImage.COMFYUI,
    )


def _compvis() -> Conventions:
    """Of the original repositories: DDIM and PLMS of CompVis, the `--dpm` option of Stability AI's."""
    stride = {"leading": Placement(spacing=Spacing.STRIDE, times=Times.TABLE, prior=Prior.TOTAL, last=Last.SIGMA_MIN)}
    closed = {
        "linspace": Placement(
            spacing=Spacing.LINSPACE_CLOSED,
            between=Between.LOG_ALPHA,
            times=Times.TABLE,
            prior=Prior.TOTAL,
            last=Last.OWN,
            fewest_steps=2,
        )
    }
    return Conventions(
        name="compvis",
        samplers={
            "ddim": SamplerRule(grid="leading", grids=stride),
            # Takes the network's output for epsilon, whatever it is. A run of one step calls the network twice.
            "plms": SamplerRule(
                grid="leading",
                grids={"leading": replace(stride["leading"], fewest_steps=2)},
                predictions=frozenset({Prediction.EPSILON}),
            ),
            "dpmpp_2m": SamplerRule(grid="linspace", grids=closed, options_below={15: {"first_order_final": True}}),
        },
        interval_noise=IntervalNoise.STREAM,
        whole_batch_noise=True,
        image_to_image=ImageToImage.COMPVIS,
    )


COMPAT: Mapping[str, Conventions] = MappingProxyType(
    {c.name: c for c in (_langevin(), _diffusers(), _a1111(), _comfyui(), _compvis())}
)
"""By name; 'langevin' is the default: every run starts at the schedule's largest sigma and ends at zero."""
