from __future__ import annotations

import ast
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import langevin
from langevin.checkpoints.pickled import PickledFile, require_safe_torch
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.errors import CheckpointError

STATE = OrderedDict(a=torch.arange(4.0), b=torch.ones(2, 3, dtype=torch.float16))


def fake_class(module: str, name: str) -> type:
    """A class that pickles under another module's name, whether or not that module exists."""
    return type(name, (), {"__module__": module, "__reduce__": lambda self: (type(self), (), {"monitor": 1})})


class Named(pickle._Pickler):  # the Python pickler can be told to write any global
    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", None)
        if module == "pytorch_lightning.callbacks.model_checkpoint":
            self.write(pickle.GLOBAL + f"{module}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch = {**pickle._Pickler.dispatch, type: save_global}  # type: ignore[attr-defined]  # noqa: RUF012


class PickleModule:
    Pickler = Named
    Unpickler = pickle.Unpickler
    load, loads, dump, dumps = pickle.load, pickle.loads, pickle.dump, pickle.dumps


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("level", [True, False])
def test_a_weight_file_is_read_with_or_without_a_state_dict_level(tmp_path: Path, zipped: bool, level: bool) -> None:
    path = tmp_path / "x.ckpt"
    data = {"state_dict": STATE, "global_step": 875000, "epoch": 3, "optimizer_states": [{"lr": 1e-4}]}
    torch.save(data if level else STATE, path, _use_new_zipfile_serialization=zipped)
    file = PickledFile(path, allow_pickle=True)
    assert list(file.tensors) == ["a", "b"]
    assert file.tensors["b"].dtype == "F16"
    assert torch.equal(file.read("a"), STATE["a"])
    assert file.global_step == (875000 if level else None)


def test_parameters_and_views_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"p": torch.nn.Parameter(whole.clone()), "column": whole[:, 1], "name": "text", "n": 3}, path)
    file = PickledFile(path, allow_pickle=True)
    assert list(file.tensors) == ["p", "column"]
    assert torch.equal(file.read("column"), torch.tensor([1.0, 5.0, 9.0]))
    assert not file.read("p").requires_grad


def test_the_flag_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save(STATE, path)
    with pytest.raises(CheckpointError, match=r"allow_pickle=True \(--allow-pickle\)"):
        PickledFile(path, allow_pickle=False)


def test_training_leftovers_become_empty_objects(tmp_path: Path) -> None:
    checkpoint = fake_class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    data = {
        "state_dict": STATE,
        "callbacks": {checkpoint: {"best_model_score": np.float64(0.5), "array": np.arange(3)}},
        "more": checkpoint(),
    }
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.ckpt"
        torch.save(data, path, pickle_module=PickleModule, _use_new_zipfile_serialization=zipped)
        assert b"ModelCheckpoint" in path.read_bytes()
        assert list(PickledFile(path, allow_pickle=True).tensors) == ["a", "b"]
    with pytest.raises(pickle.UnpicklingError):  # the stubs are gone again
        torch.load(path, weights_only=True)


class Hostile:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def hostile(canary: Path) -> list[Any]:
    code = f"open({str(canary)!r}, 'w').close()"
    import shutil
    import subprocess

    return [
        Hostile(os.system, f"touch {canary}"),
        Hostile(eval, code),
        Hostile(exec, code),
        Hostile(subprocess.check_output, ["touch", str(canary)]),
        Hostile(open, str(canary), "w"),
        Hostile(Path.touch, canary),
        Hostile(shutil.copy, "/etc/hostname", str(canary)),
        Hostile(np.save, str(canary), np.zeros(1)),
        Hostile(np.testing.measure, code),
        Hostile(torch.load, str(canary)),
        Hostile(torch.save, {}, str(canary)),
        Hostile(getattr, "x", "upper"),
        Hostile(pickle.loads, b"N."),
    ]


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_run_nothing(tmp_path: Path, suffix: str, zipped: bool) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / f"x{suffix}"
    for i, payload in enumerate(hostile(canary)):
        for j, data in enumerate([payload, {"state_dict": STATE, "x": payload}, {"a": payload, **STATE}]):
            torch.save(data, path, _use_new_zipfile_serialization=zipped)
            reader = SafetensorsFile if suffix == ".safetensors" else lambda p: PickledFile(p, allow_pickle=True)
            try:
                reader(path)
            except CheckpointError as error:
                assert "\n" not in str(error), (i, j)
            assert not any(p.name.startswith("canary") for p in tmp_path.iterdir()), (i, j)


def test_what_would_run_is_named(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = tmp_path / "x.ckpt"
        torch.save({"x": Hostile(eval, "1")}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"refused: it would run or build .*eval"):
            PickledFile(path, allow_pickle=True)


def test_truncated_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for zipped in (True, False):
        torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in range(0, len(whole) - 1, 37):
            path.write_bytes(whole[:size])
            with pytest.raises(CheckpointError) as error:
                PickledFile(path, allow_pickle=True)
            assert "\n" not in str(error.value)
    for content, words in [
        (b"<html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"GGUF....", "GGUF"),
        (b"12345678", "neither a zip"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            PickledFile(path, allow_pickle=True)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match="pickled list; expected a dictionary"):
        PickledFile(path, allow_pickle=True)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"no tensors in it \(it holds epoch\)"):
        PickledFile(path, allow_pickle=True)


@pytest.mark.parametrize(("version", "safe"), [("2.9.1", False), ("1.13", False), ("2.10.0", True), ("3.0.0+cu", True)])
def test_old_versions_of_torch_are_refused(version: str, safe: bool) -> None:
    if safe:
        require_safe_torch(version)
    else:
        with pytest.raises(CheckpointError, match="unpickles unsafely"):
            require_safe_torch(version)


def test_there_is_one_call_of_torch_load_and_no_other_unpickler() -> None:
    calls = []
    for path in Path(langevin.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("torch.load", "yaml.load", "eval", "exec", "compile", "__import__"):
                    calls.append((path.name, name))
                if name in ("np.load", "numpy.load"):
                    assert "allow_pickle=True" not in ast.unparse(node), path
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                assert not re.findall(r"\b(pickle|dill|joblib|cloudpickle|marshal|shelve)\b", " ".join(names)), path
    assert calls == [("pickled.py", "torch.load")]
