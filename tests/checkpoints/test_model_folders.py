"""Files by name, in folders laid out as other programs lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from langevin.checkpoints.model_folders import FileKind, find, missing, resolve
from langevin.errors import CheckpointError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LANGEVIN_MODELS", f"{tmp_path / 'webui'}:{tmp_path / 'comfy'}:{tmp_path / 'flat'}")
    touch(
        tmp_path / "webui",
        "models/Stable-diffusion/dream.safetensors", "models/Stable-diffusion/old/dream2.ckpt",
        "models/Lora/ink.safetensors", "models/Lora/styles/oil.safetensors", "models/LyCORIS/wood.safetensors",
        "models/VAE/fine.safetensors", "embeddings/bad hands.pt", "models/ControlNet/canny.pth",
    )  # fmt: skip
    touch(
        tmp_path / "comfy",
        "models/checkpoints/robo.safetensors", "models/loras/wash.safetensors", "models/vae/mse/config.json",
        "models/vae/mse/diffusion_pytorch_model.safetensors", "models/controlnet/depth.safetensors",
        "models/embeddings/flat.safetensors", "models/diffusers/sd/model_index.json",
        "models/diffusers/sd/vae/config.json",
    )  # fmt: skip
    touch(tmp_path / "flat", "arcane.safetensors", "notes.txt")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("model", "dream", "webui/models/Stable-diffusion/dream.safetensors"),
        ("model", "dream.safetensors", "webui/models/Stable-diffusion/dream.safetensors"),
        ("model", "dream2", "webui/models/Stable-diffusion/old/dream2.ckpt"),
        ("model", "old/dream2", "webui/models/Stable-diffusion/old/dream2.ckpt"),
        ("model", "robo", "comfy/models/checkpoints/robo.safetensors"),
        ("model", "sd", "comfy/models/diffusers/sd"),
        ("model", "arcane", "flat/arcane.safetensors"),
        ("lora", "ink", "webui/models/Lora/ink.safetensors"),
        ("lora", "oil", "webui/models/Lora/styles/oil.safetensors"),
        ("lora", "styles/oil", "webui/models/Lora/styles/oil.safetensors"),
        ("lora", "wood", "webui/models/LyCORIS/wood.safetensors"),
        ("lora", "wash", "comfy/models/loras/wash.safetensors"),
        ("vae", "fine", "webui/models/VAE/fine.safetensors"),
        ("vae", "mse", "comfy/models/vae/mse"),
        ("embedding", "bad hands", "webui/embeddings/bad hands.pt"),
        ("embedding", "flat", "comfy/models/embeddings/flat.safetensors"),
        ("controlnet", "canny", "webui/models/ControlNet/canny.pth"),
        ("controlnet", "depth.safetensors", "comfy/models/controlnet/depth.safetensors"),
        ("lora", "dream", None),
        ("model", "notes", None),
        ("model", "../webui/models/Stable-diffusion/dream", None),
        ("lora", "", None),
    ],
)
def test_names_lead_to_files_of_their_kind(kind: FileKind, name: str, file: str | None, root: Path) -> None:
    assert find(kind, name) == (None if file is None else root / file)


def test_an_ambiguous_name_is_refused_with_its_candidates(root: Path) -> None:
    touch(root / "comfy", "models/loras/ink.safetensors")
    with pytest.raises(CheckpointError) as error:
        find("lora", "ink")
    assert "'ink' is the name of 2 LoRA files: " in str(error.value)
    for file in ("webui/models/Lora/ink.safetensors", "comfy/models/loras/ink.safetensors"):
        assert str(root / file) in str(error.value)
    # The same file by two ways is one; of two formats the safe one is meant.
    (root / "comfy/models/loras/ink.safetensors").unlink()
    (root / "comfy/models/loras/ink.safetensors").symlink_to(root / "webui/models/Lora/ink.safetensors")
    assert find("lora", "ink") == root / "webui/models/Lora/ink.safetensors"
    touch(root / "flat", "dream.ckpt")
    assert find("model", "dream") == root / "webui/models/Stable-diffusion/dream.safetensors"
    assert find("model", "dream.ckpt") == root / "flat/dream.ckpt"


def test_folders_that_lead_into_themselves_are_read_once(root: Path) -> None:
    (root / "webui/models/Lora/styles/again").symlink_to(root / "webui/models/Lora")
    assert find("lora", "oil") == root / "webui/models/Lora/styles/oil.safetensors"


def test_what_is_not_there_is_said_with_near_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing("lora", "inc").endswith("; did you mean 'ink'?")
    assert missing("vae", "zzz").endswith(" (arcane, fine, mse)")
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: no such file, and no LoRA of that name in "):
        resolve("lora", "nowhere.safetensors")
    assert resolve("lora", root / "flat/arcane.safetensors") == root / "flat/arcane.safetensors"
    monkeypatch.delenv("LANGEVIN_MODELS")
    with pytest.raises(CheckpointError, match=r"\(\$LANGEVIN_MODELS is not set\)"):
        resolve("lora", "ink")


@pytest.mark.parametrize("named", ["comfy", "comfy/extra_model_paths.yaml"])
def test_folders_that_comfyui_is_told_of(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list in ComfyUI's own folder, or by itself: relative to base_path, that to the list, one folder a line."""
    monkeypatch.setenv("LANGEVIN_MODELS", str(tmp_path / named))
    monkeypatch.setenv("SHARED", str(tmp_path / "shared"))
    touch(tmp_path / "webui", "models/SD/dream.safetensors", "models/Lora/ink.safetensors", "more/wood.safetensors")
    touch(tmp_path / "shared", "vision/vit-h.safetensors", "ip/plus.safetensors", "secret/x.safetensors")
    touch(tmp_path / "comfy", "models/loras/own.safetensors")
    (tmp_path / "comfy" / "extra_model_paths.yaml").write_text(
        "a111:\n  base_path: ../webui\n  is_default: true\n  checkpoints: models/SD\n"
        "  loras: |\n    models/Lora\n    more\n  upscale_models: models/ESRGAN\n"
        "other:\n  base_path: $SHARED/\n  clip_vision: vision\n  ipadapter: ip/\nempty:\n"
    )
    assert find("model", "dream") == tmp_path / "comfy/../webui/models/SD/dream.safetensors"
    assert resolve("lora", "ink").is_file() and resolve("lora", "wood").is_file()
    assert find("image-encoder", "vit-h") == tmp_path / "shared/vision/vit-h.safetensors"
    assert find("ip-adapter", "plus") == tmp_path / "shared/ip/plus.safetensors"
    assert find("lora", "x") is None and find("model", "ink") is None
    assert (find("lora", "own") is None) == (named != "comfy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- a", "not a list of folders"),
        ("a: b", "not a list of folders"),
        ("a: {loras: [x, y]}", "loras: expected a folder, or several on a line each"),
    ],
)
def test_a_broken_list_of_folders(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGEVIN_MODELS", str(tmp_path))
    (tmp_path / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=f"extra_model_paths.yaml: {message}"):
        find("lora", "x")


@pytest.mark.parametrize(("kind", "name"), [("lora", "emoji-fast"), ("controlnet", "emoji-edges")])
def test_what_the_package_brings_has_names_too(kind: FileKind, name: str, root: Path) -> None:
    packaged = resolve(kind, name)
    assert packaged.is_file() and packaged == find(kind, f"{name}.safetensors")
    assert find("model", name) is None
    touch(root / "flat", f"{name}.safetensors")
    assert find(kind, name) == root / "flat" / f"{name}.safetensors"
