"""Single files: reading strictly, choosing weights, writing the same bytes again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.checkpoints import tiny

from langevin.checkpoints import places
from langevin.checkpoints.config import ModelConfig, ScheduleConfig
from langevin.checkpoints.loader import load_bundle, open_checkpoint
from langevin.checkpoints.original import write, write_original
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import CheckpointError
from langevin.networks.unet import UNet

KINDS: dict[str, dict[str, Any]] = {
    "sd1": {"unet": tiny.SD1},
    "inpainting": {"unet": tiny.INPAINTING},
    "sd2": {"unet": tiny.SD2},
    "depth": {"unet": tiny.DEPTH},
    "upscaler": {"unet": tiny.UPSCALER, "schedule": NoiseSchedule.scaled_linear(1000, 1e-4, 0.02)},
    "ema": {"unet": tiny.SD1, "ema": True},
    "control": {"unet": tiny.SD1, "control": True},
    "float32": {"unet": tiny.SD1, "dtype": torch.float32},
    "bfloat16": {"unet": tiny.SD1, "dtype": torch.bfloat16},
}
STATED = {"modelspec.prediction_type": "v"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_comes_out_byte_for_byte(tmp_path: Path, kind: str) -> None:
    source = tiny.save(tmp_path / "a.safetensors", tiny.single_file(**KINDS[kind]), STATED if kind == "sd2" else None)
    write_original(open_checkpoint(source), tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == source.read_bytes()


def test_order_and_metadata_of_other_programs_are_kept(tmp_path: Path) -> None:
    tensors = tiny.single_file()
    order = sorted(tensors, reverse=True)
    source = tiny.save(tmp_path / "a.safetensors", tensors, {"modelspec.title": "Ä", "z": "1", "a": "2"}, order)
    write_original(open_checkpoint(source), tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["sd1", "ema", "bfloat16"])
def test_a_loaded_model_is_written_byte_for_byte(tmp_path: Path, kind: str) -> None:
    source = tiny.save(tmp_path / "a.safetensors", tiny.single_file(**KINDS[kind]))
    # The average of these files is float32, the rest float16: a loaded model has one precision.
    options: dict[str, Any] = {"ema": False} if kind == "ema" else {}
    bundle = load_bundle(source, dtype="bfloat16" if kind == "bfloat16" else "float16", **options)
    write(bundle, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == source.read_bytes()


def test_the_written_precision_is_the_one_asked_for(tmp_path: Path, sd1_file: Path) -> None:
    bundle = load_bundle(sd1_file)
    for dtype, torch_type in (("BF16", torch.bfloat16), ("F32", torch.float32), ("F16", torch.float16)):
        path = tmp_path / f"{dtype}.safetensors"
        write(bundle, path, dtype=dtype)
        written = load_file(path)
        assert written["model.diffusion_model.out.2.weight"].dtype == torch_type
        assert written["first_stage_model.decoder.conv_in.weight"].dtype == torch_type
        assert written["alphas_cumprod"].dtype == torch.float32
    tiny.same_outputs(load_bundle(tmp_path / "F16.safetensors"), bundle)


def test_a_changed_file_does_not_keep_the_old_hash(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "a.safetensors", tiny.single_file(), {"modelspec.hash_sha256": "0x1", "title": "T"})
    write_original(open_checkpoint(source), tmp_path / "same.safetensors")
    write_original(open_checkpoint(source), tmp_path / "half.safetensors", dtype="BF16")
    for name, expected in (("same", {"modelspec.hash_sha256", "title"}), ("half", {"title", "langevin.config"})):
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            assert set(file.metadata()) == {"format", "langevin.tokenizer"} | expected


def test_loading_takes_the_weights_as_they_are(sd1_file: Path) -> None:
    bundle = load_bundle(sd1_file, dtype="float32")
    stored = load_file(sd1_file)
    for name, value in bundle.diffusion.network.state_dict().items():
        assert torch.equal(value, stored[f"model.diffusion_model.{name}"].float())
    assert not any(p.requires_grad or p.is_meta for n in bundle.networks().values() for p in n.parameters())
    assert not any(m.training for n in bundle.networks().values() for m in n.modules())
    assert bundle.autoencoder is not None and bundle.autoencoder.scale_factor == 0.18215
    assert bundle.info.prediction is Prediction.EPSILON and bundle.info.stored_dtype == "F16"
    assert bundle.info.family == "sd1" and bundle.info.default_size == (512, 512)
    assert torch.equal(bundle.extras["betas"], stored["betas"])


def test_the_openclip_tower_is_split_and_its_last_but_one_layer_is_used(sd2_file: Path) -> None:
    bundle = load_bundle(sd2_file)
    stored = load_file(sd2_file)
    assert bundle.text is not None and bundle.text.layer == -2
    block = "text_model.encoder.layers.0.self_attn"
    state = bundle.text.network.state_dict()
    fused = stored["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"].float()
    for i, letter in enumerate("qkv"):
        assert torch.equal(state[f"{block}.{letter}_proj.weight"], fused[1024 * i : 1024 * (i + 1)])
    projection = stored["cond_stage_model.model.text_projection"].float()
    assert torch.equal(state["text_projection.weight"], projection.T)
    assert bundle.info.family == "sd2" and bundle.info.prediction is Prediction.V
    assert bundle.info.default_size == (768, 768)
    assert bundle.diffusion.network.config.upcast_attention


# -- which weights ----------------------------------------------------------------------------------------------------


def test_the_moving_average_is_used_where_there_is_one(tmp_path: Path) -> None:
    tensors = tiny.single_file(ema=True)
    path = tiny.save(tmp_path / "a.safetensors", tensors)
    name = "out.2.weight"
    averaged = tensors[places.averaged([name])[name].name]
    trained = tensors[f"model.diffusion_model.{name}"].float()
    assert not torch.equal(averaged, trained)
    for ema, expected in (("auto", averaged), (True, averaged), (False, trained)):
        bundle = load_bundle(path, ema=ema)
        assert torch.equal(bundle.diffusion.network.state_dict()[name], expected)
        assert bundle.info.weights == ("plain" if ema is False else "ema")
        assert any("EMA" in notice for notice in bundle.info.notices) == (ema is not False)


def test_an_incomplete_average_is_not_used(tmp_path: Path) -> None:
    tensors = tiny.single_file(ema=True)
    del tensors[places.averaged(["out.2.weight"])["out.2.weight"].name]
    path = tiny.save(tmp_path / "a.safetensors", tensors)
    bundle = load_bundle(path)
    assert bundle.info.weights == "plain" and any("incomplete" in notice for notice in bundle.info.notices)
    with pytest.raises(CheckpointError, match=r"ema=True needs the moving average model_ema\.\*: 1 of \d+ are missing"):
        load_bundle(path, ema=True)


def test_an_average_that_is_not_there_cannot_be_asked_for(sd1_file: Path) -> None:
    with pytest.raises(CheckpointError, match="there are none; pass ema=False"):
        load_bundle(sd1_file, ema=True)


# -- names of other programs ------------------------------------------------------------------------------------------


def test_names_of_transformers_5_are_read(tmp_path: Path, sd1_file: Path) -> None:
    tensors = {name.replace(".text_model.", "."): value for name, value in load_file(sd1_file).items()}
    path = tiny.save(tmp_path / "a.safetensors", tensors)
    tiny.same_outputs(load_bundle(path), load_bundle(sd1_file))
    write_original(open_checkpoint(path), tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_linear_and_convolutional_projections_are_both_taken(tmp_path: Path, sd2_file: Path) -> None:
    tensors = load_file(sd2_file)
    for name in tensors:
        if name.endswith(("attn_1.q.weight", "attn_1.proj_out.weight")):
            tensors[name] = tensors[name].flatten(1)
    path = tiny.save(tmp_path / "a.safetensors", tensors, STATED)
    tiny.same_outputs(load_bundle(path), load_bundle(sd2_file))


def test_a_file_of_23_blocks_uses_the_last(tmp_path: Path) -> None:
    # A 2.x file made from a diffusers folder has no block behind the one that is used.
    from langevin.checkpoints.original import _text_layer
    from langevin.networks.clip import ClipTextConfig

    for layers, expected in ((24, -2), (23, -1)):
        config = ClipTextConfig(width=64, heads=1, layers=layers)
        assert _text_layer(config, "openclip", None) == expected


# -- what the file says of itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "extra", "expected"),
    [
        ({"modelspec.prediction_type": "epsilon"}, {}, "epsilon"),
        ({"modelspec.prediction_type": "v"}, {}, "v"),
        ({}, {"v_pred": torch.zeros(0)}, "v"),
    ],
)
def test_the_file_states_the_prediction_type(
    tmp_path: Path, metadata: dict[str, str], extra: dict[str, torch.Tensor], expected: str
) -> None:
    path = tiny.save(tmp_path / "a.safetensors", tiny.single_file(tiny.SD2) | extra, metadata)
    assert open_checkpoint(path).config.prediction == expected
    # The caller has the last word.
    other = "epsilon" if expected == "v" else "v"
    assert open_checkpoint(path, prediction=other).config.prediction == other


def test_the_schedule_is_the_files_own(tmp_path: Path) -> None:
    usual = NoiseSchedule.scaled_linear()
    cases = {
        "usual": (usual, ScheduleConfig()),
        "zero": (usual.rescaled_zero_terminal_snr(), ScheduleConfig(zero_terminal_snr=True)),
        "linear": (NoiseSchedule.linear(), ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02)),
    }
    for name, (schedule, expected) in cases.items():
        path = tiny.save(tmp_path / f"{name}.safetensors", tiny.single_file(schedule=schedule))
        assert open_checkpoint(path).config.schedule == expected, name
    odd = NoiseSchedule.scaled_linear(1000, 0.001, 0.01)
    path = tiny.save(tmp_path / "odd.safetensors", tiny.single_file(schedule=odd))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.schedule.kind == "betas" and "own table" in checkpoint.notices[0]
    made = checkpoint.config.schedule.make()
    # The file's table is float32: near t = 0, 1 - abar has only some digits left.
    assert torch.allclose(made.abar, odd.abar, rtol=0, atol=1e-6)


def test_marker_of_zero_terminal_snr(tmp_path: Path) -> None:
    tensors = tiny.single_file() | {"ztsnr": torch.zeros(0)}
    path = tiny.save(tmp_path / "a.safetensors", tensors)
    assert open_checkpoint(path).config.schedule == ScheduleConfig(zero_terminal_snr=True)


def test_coarse_tables_are_not_used_for_an_unknown_schedule(tmp_path: Path) -> None:
    tensors = tiny.single_file(schedule=NoiseSchedule.scaled_linear(1000, 0.002, 0.03))
    tensors["alphas_cumprod"] = tensors["alphas_cumprod"].half()
    checkpoint = open_checkpoint(tiny.save(tmp_path / "a.safetensors", tensors))
    assert checkpoint.config.schedule == ScheduleConfig() and "too coarse" in checkpoint.notices[0]


def test_the_latent_scale_is_the_files_own(tmp_path: Path) -> None:
    tensors = tiny.single_file() | {"scale_factor": torch.tensor(0.25)}
    assert open_checkpoint(tiny.save(tmp_path / "a.safetensors", tensors)).config.scale_factor == 0.25
    tensors["scale_factor"] = torch.tensor(float("nan"))
    with pytest.raises(CheckpointError, match="scale_factor is"):
        open_checkpoint(tiny.save(tmp_path / "b.safetensors", tensors))


# -- our own files ----------------------------------------------------------------------------------------------------


def test_our_metadata_holds_everything(tmp_path: Path) -> None:
    """A model whose shapes are of no convention: all that the weights do not say comes from the metadata."""
    from langevin.model.autoencoder import Autoencoder
    from langevin.model.bundle import CheckpointInfo, ModelBundle
    from langevin.model.diffusion_model import DiffusionModel
    from langevin.model.text import TextEncoder
    from langevin.networks.autoencoder import AutoencoderKL
    from langevin.networks.clip import ClipText, ClipTextConfig
    from langevin.networks.unet import UNetConfig

    unet = UNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(True, True),
        num_heads=None,
        head_channels=16,
        context_channels=48,
        linear_projection=True,
    )
    text = ClipTextConfig(
        vocabulary=tiny.VOCABULARY,
        width=48,
        layers=2,
        heads=3,
        mlp_width=64,
        activation="gelu",
        projection=32,
        eos_token=tiny.VOCABULARY - 1,
    )
    schedules = {
        "usual": NoiseSchedule.scaled_linear(),
        "cosine": NoiseSchedule.cosine(),
        "odd": NoiseSchedule.sigmoid(500),
    }
    for name, schedule in schedules.items():
        bundle = ModelBundle(
            diffusion=DiffusionModel(tiny.random_network(UNet(unet)), schedule, Prediction.V),
            autoencoder=Autoencoder(tiny.random_network(AutoencoderKL(tiny.CODEC)), 0.7),  # type: ignore[arg-type]
            text=TextEncoder(tiny.random_network(ClipText(text)), tiny.TOKENIZER),  # type: ignore[arg-type]
            info=CheckpointInfo(prediction=Prediction.V, default_size=(64, 48), default_steps=12, default_guidance=3.0),
        )
        path = tmp_path / f"{name}.safetensors"
        write(bundle, path)
        back = load_bundle(path)
        tiny.same_outputs(back, bundle)
        assert back.diffusion.network.config == unet
        assert back.text is not None and back.text.network.config == text
        assert back.text.tokenizer.to_json() == tiny.TOKENIZER.to_json()
        assert back.autoencoder is not None and back.autoencoder.scale_factor == 0.7
        assert torch.allclose(back.diffusion.schedule.sigmas, schedule.sigmas, rtol=1e-10, atol=0)
        assert back.info.prediction is Prediction.V and "langevin.config" in back.info.prediction_from
        assert (back.info.default_size, back.info.default_steps, back.info.default_guidance) == ((64, 48), 12, 3.0)
        assert back.info.notices == () and not back.extras
        write(back, tmp_path / "again.safetensors", overwrite=True)
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_model_of_pixels_needs_neither_autoencoder_nor_text(tmp_path: Path) -> None:
    from langevin.model.bundle import CheckpointInfo, ModelBundle
    from langevin.model.diffusion_model import DiffusionModel
    from langevin.networks.unet import UNetConfig

    config = UNetConfig(
        in_channels=3,
        out_channels=6,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(False, True),
        context_channels=None,
        num_heads=2,
        num_classes=10,
        scale_shift_norm=True,
    )
    network = tiny.random_network(UNet(config))
    model = DiffusionModel(network, NoiseSchedule.cosine(), Prediction.EPSILON, learned_variance=True)
    info = CheckpointInfo(prediction=Prediction.EPSILON)
    write(ModelBundle(diffusion=model, info=info), tmp_path / "a.safetensors")
    back = load_bundle(tmp_path / "a.safetensors")
    assert back.autoencoder is None and back.text is None and back.diffusion.learned_variance
    assert back.diffusion.network.config == config
    z, t, labels = torch.randn(1, 3, 8, 8), torch.tensor([7.0]), torch.tensor([3])
    assert torch.equal(back.diffusion.network(z, t, labels=labels), network(z, t, labels=labels))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c | {"format": 2}, "not of format 1"),
        (lambda c: c | {"colour": "red"}, "unknown field 'colour'"),
        (lambda c: c | {"unet": c["unet"] | {"depth": 3}}, "unet: unknown field 'depth'"),
        (lambda c: c | {"unet": c["unet"] | {"in_channels": "4"}}, r"unet\.in_channels = 4"),
        (lambda c: c | {"prediction": "w"}, "prediction = w"),
        (lambda c: c | {"text": None}, r"it holds a text encoder, of which its langevin\.config knows nothing"),
        (lambda c: c | {"unet": c["unet"] | {"context_channels": 512}}, r"has shape \[32, 768\], expected \[32, 512\]"),
        (lambda c: c | {"unet": c["unet"] | {"channel_mult": [1, 1]}}, "has shape"),
        (lambda c: c | {"unet": c["unet"] | {"num_res_blocks": 2}}, r"U-Net: \d+ of \d+ tensors are missing"),
    ],
)
def test_a_configuration_that_lies_is_refused_in_one_line(
    tmp_path: Path, sd1_file: Path, change: Any, words: str
) -> None:
    config = json.loads(open_checkpoint(sd1_file).config.to_json())
    path = tiny.save(tmp_path / "a.safetensors", load_file(sd1_file), {"langevin.config": json.dumps(change(config))})
    with pytest.raises(CheckpointError, match=words) as error:
        load_bundle(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_configurations_survive_their_json() -> None:
    for unet in (tiny.SD1, tiny.SD2, tiny.UPSCALER):
        config = ModelConfig(unet=unet, text=tiny.CLIP, autoencoder=tiny.CODEC, prediction=Prediction.EDM)
        assert ModelConfig.from_json(config.to_json(), "x") == config
