"""The JSON of folders: schedules equal to diffusers', everything unknown refused by name, nothing ever run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.checkpoints import tiny

from langevin.checkpoints.diffusers_configs import (
    controlnet_json,
    read_controlnet,
    read_schedule,
    read_unet,
    schedule_json,
    unet_json,
)
from langevin.checkpoints.jsonfile import Fields
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError
from langevin.networks.unet import UNetConfig

SCHEDULES: dict[str, dict[str, Any]] = {
    "stable diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "the class's default": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "few steps": {"beta_schedule": "scaled_linear", "num_train_timesteps": 100},
    "zero terminal SNR": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": True,
    },
    "trained": {"trained_betas": [0.01 + 0.001 * i for i in range(50)]},
    "sigmoid": {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_diffusers(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    data = {"_class_name": "DDIMScheduler", **SCHEDULES[name]}
    config, prediction, notices = read_schedule(Fields(data, "x"))
    schedule = config.make()
    options = {key: value for key, value in data.items() if key != "_class_name"}
    theirs = getattr(diffusers, data["_class_name"])(**options).alphas_cumprod.double()
    assert len(schedule) == len(theirs) and prediction is Prediction.EPSILON and notices == []
    # Theirs is computed in float32; a zero terminal abar is held at 2^-24 here.
    assert (schedule.abar - theirs).abs().max() < 2e-6
    # What is written says the same again.
    written, again, _ = read_schedule(Fields(schedule_json(config, Prediction.V), "x"))
    assert again is Prediction.V
    assert torch.allclose(written.make().sigmas, schedule.sigmas, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("epsilon", Prediction.EPSILON), ("v_prediction", Prediction.V), ("sample", Prediction.X0)],
)
def test_prediction_types(name: str, expected: Prediction) -> None:
    for cls in ("PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        assert read_schedule(Fields({"_class_name": cls, "prediction_type": name}, "x"))[1] is expected


def test_what_an_unknown_scheduler_option_says_is_not_hidden() -> None:
    data = {"_class_name": "DDIMScheduler", "steps_offset": 1, "snr_shift_scale": 3.0, "_diffusers_version": "0.1"}
    assert read_schedule(Fields(data, "s.json"))[2] == ["s.json: ignored snr_shift_scale"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEuler.*; expected one of DDIM"),
        ({"_class_name": ["my", "Scheduler"]}, "_class_name"),
        ({}, "_class_name: null; expected"),
        ({"beta_schedule": "laplace"}, 'beta_schedule: "laplace" is not known; known: scaled_linear, linear'),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"use_flow_sigmas": True}, "a flow model"),
        ({"beta_start": "1e-4"}, "beta_start: .* is not a number"),
        ({"beta_end": 1.5}, "beta_schedule"),
        ({"beta_start": -1.0}, "beta_schedule"),
        ({"trained_betas": [2.0]}, "trained_betas"),
        ({"num_train_timesteps": 10**12}, "a schedule of 1000000000000 steps"),
        ({"num_train_timesteps": True}, "is not a whole number"),
    ],
)  # fmt: skip
def test_bad_schedulers(data: dict[str, Any], words: str) -> None:
    data = data if "_class_name" in data or not data else {"_class_name": "DDIMScheduler", **data}
    with pytest.raises(CheckpointError, match=words) as error:
        read_schedule(Fields(data, "scheduler_config.json"))
    assert str(error.value).startswith("scheduler_config.json: ") and "\n" not in str(error.value)


def test_networks_survive_their_json() -> None:
    for config in (tiny.SD1, tiny.SD2, tiny.UPSCALER, UNetConfig(scale_shift_norm=True, upcast_attention=True)):
        assert read_unet(Fields(unet_json(config, 64), "x")) == (config, 64)
    for config in (tiny.SD1, tiny.SD2):
        for pooled in (False, True):
            assert read_controlnet(Fields(controlnet_json(config, 3, pooled=pooled), "x")) == (config, 3, pooled)
