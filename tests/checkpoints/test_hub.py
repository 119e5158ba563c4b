"""Models from the Hub, against a server on loopback that speaks its protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints.hub_server import FakeHub, serving

from langevin.checkpoints.hub import Repository, parse

ASK = """
import json, sys, time
time.sleep = lambda seconds: None  # the client waits between its attempts
from langevin.checkpoints.hub import fetch, parse
from langevin.errors import CheckpointError
arguments = json.loads(sys.argv[1])
try:
    found = fetch(parse(arguments.pop("id")), **arguments)
    print(json.dumps({"path": str(found.path), "commit": found.commit}))
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
assert "torch" not in sys.modules
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub()) as server:
        yield server


@pytest.fixture
def ask(hub: FakeHub, tmp_path: Path) -> Any:
    """`fetch` in a process of its own: the client reads its environment when it is imported."""

    def run(**arguments: Any) -> dict[str, str]:
        offline = arguments.pop("offline", False)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment |= {
            "HF_ENDPOINT": arguments.pop("endpoint", hub.endpoint),
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", ASK, json.dumps(arguments)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        assert "\n" not in answer.get("error", "")
        return answer

    return run


FILES: dict[str, bytes] = {
    "model_index.json": b"{}",
    "README.md": b"words",
    "pipeline.py": b"raise SystemExit",
    "model.ckpt": b"0",
    "v1.safetensors": b"0",
    "scheduler/scheduler_config.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"unet",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"trained",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"vae",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "text_encoder/model-00001-of-00002.safetensors": b"1",
    "text_encoder/model-00002-of-00002.safetensors": b"2",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"",
    "safety_checker/model.safetensors": b"large",
}
NEEDED = {
    name
    for name in FILES
    if name not in ("README.md", "pipeline.py", "model.ckpt", "v1.safetensors")
    and not name.startswith("safety_checker")
    and not name.endswith((".bin", "fp16.safetensors", "non_ema.safetensors"))
}


def cached(folder: str) -> set[str]:
    root = Path(folder)
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_only_what_is_needed_is_downloaded_at_one_commit(hub: FakeHub, ask: Any) -> None:
    commit = hub.publish("owner/name", FILES)
    answer = ask(id="owner/name")
    assert answer["commit"] == commit and cached(answer["path"]) == NEEDED
    # One question names the branch; everything after it names the commit.
    revisions = [path.split("/")[4] for _, path in hub.requests if "/resolve/" in path]
    assert revisions[0] == "main" and set(revisions[1:]) <= {"main", commit}
    assert [path for path in hub.downloads() if "/main/" in path] in ([], ["/owner/name/resolve/main/model_index.json"])
    # Everything is there now: no file is sent again, and without the network it is found.
    before = len(hub.downloads())
    assert ask(id="owner/name") == answer and len(hub.downloads()) == before
    asked = len(hub.requests)
    assert ask(id="owner/name", offline=True) == answer
    assert ask(id="owner/name", revision=commit, offline=True) == answer
    assert len(hub.requests) == asked
    # A server that has gone away is no reason to fail either.
    assert ask(id="owner/name", endpoint="http://127.0.0.1:9") == answer


def test_variants_and_revisions(hub: FakeHub, ask: Any) -> None:
    old = hub.publish("owner/name", FILES)
    new = hub.publish("owner/name", {**FILES, "README.md": b"changed"})
    assert old != new
    assert ask(id="owner/name")["commit"] == new
    assert ask(id="owner/name", revision=old)["commit"] == old
    half = cached(ask(id="owner/name", half=True)["path"])
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in half
    trained = cached(ask(id="owner/name", non_ema=True)["path"])
    assert "unet/diffusion_pytorch_model.non_ema.safetensors" in trained
    assert "no revision nowhere" in ask(id="owner/name", revision="nowhere")["error"]


def test_text_encoders(hub: FakeHub, ask: Any) -> None:
    needed = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
    other = {
        "pytorch_model.bin": b"pickle",
        "flax_model.msgpack": b"",
        "spiece.model": b"",
        "onnx/model.safetensors": b"",
    }
    commit = hub.publish("owner/t5", needed | other)
    answer = ask(id="owner/t5", kind="text-encoder")
    assert answer["commit"] == commit and cached(answer["path"]) == {*needed}
    hub.publish("owner/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    assert "only pickled weights (pytorch_model.bin)" in ask(id="owner/old", kind="text-encoder")["error"]


def test_single_files(hub: FakeHub, ask: Any) -> None:
    commit = hub.publish("owner/one", {"sub/m.safetensors": b"1", "README.md": b""})
    hub.publish("owner/two", {"a.safetensors": b"1", "b.safetensors": b"2"})
    answer = ask(id="owner/one")
    assert answer["commit"] == commit and answer["path"].endswith(f"{commit}/sub/m.safetensors")
    assert ask(id="owner/one", offline=True) == answer
    assert ask(id="owner/one/sub/m.safetensors") == answer
    assert ask(id="owner/one/sub/m.safetensors", offline=True) == answer
    error = ask(id="owner/two")["error"]
    assert "name one of its weight files instead: owner/two/a.safetensors, owner/two/b.safetensors" in error
    assert ask(id="owner/two/b.safetensors")["path"].endswith("b.safetensors")
    assert "no file c.safetensors at main" in ask(id="owner/two/c.safetensors")["error"]


def test_controlnets(hub: FakeHub, ask: Any) -> None:
    files = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"1", "diffusion_pytorch_model.bin": b"2"}
    hub.publish("owner/control", files)
    found = cached(ask(id="owner/control", kind="controlnet")["path"])
    assert found == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_pickles_only_if_allowed(hub: FakeHub, ask: Any) -> None:
    files = {name: data for name, data in FILES.items() if not name.startswith("unet/diff") or name.endswith(".bin")}
    hub.publish("owner/name", files)
    assert "only pickled weights (unet/diffusion_pytorch_model.bin)" in ask(id="owner/name")["error"]
    assert "unet/diffusion_pytorch_model.bin" in cached(ask(id="owner/name", allow_pickle=True)["path"])


def test_errors_are_one_line_that_says_what_to_do(hub: FakeHub, ask: Any) -> None:
    hub.publish("owner/gated", FILES)
    hub.gated.add("owner/gated")
    hub.publish("owner/empty", {**FILES, "unet/config.json": b"{}"} | {"README.md": b""})
    for name in list(hub.commits["owner/empty"]):
        files = hub.commits["owner/empty"][name]
        hub.commits["owner/empty"][name] = {n: d for n, d in files.items() if not n.startswith("unet/diffusion")}
    cases = {
        "owner/missing": "no such file here, and no such model on http://127.0.0.1",
        "owner/gated": "gated: accept its terms on http://127.0.0.1",
        "owner/empty": "no weights in unet/: expected diffusion_pytorch_model.safetensors",
    }
    for repository, words in cases.items():
        assert words in ask(id=repository)["error"]
    assert "not in the cache" in (error := ask(id="owner/other", offline=True)["error"])
    assert "HF_HUB_OFFLINE is set" in error
    assert "does not answer" in ask(id="owner/other", endpoint="http://127.0.0.1:9")["error"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", Repository("owner/name", None)),
        ("hub:owner/name", Repository("owner/name", None)),
        ("owner/name/a b.safetensors", Repository("owner/name", "a b.safetensors")),
        ("owner/name/sub/m.ckpt", Repository("owner/name", "sub/m.ckpt")),
        ("name", None),
        ("owner/name/notes.txt", None),
        ("/owner/name", None),
        ("./owner/name", None),
        ("../name", None),
        ("owner/../../x.safetensors", None),
        ("owner//name", None),
        ("C:\\models\\m.safetensors", None),
        ("https://huggingface.co/owner/name", None),
    ],
)
def test_ids(text: str, expected: Repository | None) -> None:
    assert parse(text) == expected
