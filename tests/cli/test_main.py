"""The command line as a whole: exit codes, one-line errors, options made from the definitions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from langevin.cli import main as cli
from langevin.cli.options import collect, parameters
from langevin.errors import RequestError
from langevin.tasks.request import GenerateRequest, ModelOptions
from langevin.version import __version__


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        code, out, err = run(capsys, *arguments)
        assert code == 0 and "Usage: langevin" in out and not err
        commands = {line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()}
        assert commands >= {"generate", "reproduce", "explain", "selftest", "train", "convert", "info"}
    assert run(capsys, "--version") == (0, f"langevin {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "prompt is missing: say what to draw"),
        (["generate", "a", "--steps", "0"], "steps 0 is out of bounds: give 1 to 1000"),
        (["generate", "a", "--steps", "many"], "invalid value for '--steps'"),
        (["generate", "a", "--seeds", "1,b"], "seeds 'b' is not a whole number"),
        (["generate", "a", "--sampler", "eulr"], "did you mean 'euler'?"),
        (["generate", "a", "--sampler-options", "eta"], "sampler_options 'eta' has no value: give NAME=VALUE"),
        (["generate", "a", "--guidance-interval", "3"], "guidance_interval (3.0,) does not fit"),
        (["generate", "a", "--nothing"], "no such option: --nothing"),
        (["generate", "a", "b"], "unexpected extra argument"),
        (["generate", "a", "-o", "a.jpg"], "output 'a.jpg' is not a .png file"),
        (["generate", "a", "-o", "no/such/a.png"], "the folder no/such does not exist"),
        (["generate", "a", "--model", "nowhere.safetensors"], "nowhere.safetensors"),
        (["generate", "a", "--device", "abacus"], "device 'abacus' is not available"),
        (["generate", "a", "--device", "meta"], "device 'meta' is not available"),
        (["reproduce", "nowhere.png", "--verify"], "nowhere.png does not exist"),
        (["reproduce", "nowhere.png"], "nothing to do: give --verify"),
        (["paint"], "no such command 'paint'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> typer.Typer:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "build", broken)
    with pytest.raises(ZeroDivisionError):
        cli.run(["--help"])


def test_an_interruption_is_130_and_one_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> typer.Typer:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build", interrupted)
    assert run(capsys, "--help") == (130, "", "stopped\n")


def test_every_field_is_an_option_and_comes_back() -> None:
    names = {p.name for p in parameters(GenerateRequest, arguments=["prompt"])}
    assert names == set(GenerateRequest.model_fields)
    request = collect(
        GenerateRequest,
        {
            "prompt": "a", "steps": 3, "sigmas": None, "seeds": "1, 2", "guidance_interval": "0.5,3",
            "sampler_options": ["eta=0.5", "order=2", "lower_order_final=false", "variant=bh1"], "negative": None,
        },
    )  # fmt: skip
    assert request == GenerateRequest(
        prompt="a", steps=3, seeds=(1, 2), guidance_interval=(0.5, 3.0),
        sampler_options={"eta": 0.5, "order": 2, "lower_order_final": False, "variant": "bh1"},
    )  # fmt: skip
    assert collect(ModelOptions, {"allow_pickle": True, "dtype": "bf16"}).precision == "bfloat16"
    with pytest.raises(RequestError, match="dtype 'int8' is not known: use float32"):
        collect(ModelOptions, {"dtype": "int8"})


def test_ctrl_c_in_the_middle_leaves_nothing_half_written(model_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "langevin", "generate", "a cat", "-m", str(model_file), "-o", "a.png", "-n", "50",
               "--steps", "1000", "--width", "64", "--height", "64"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A background job of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    # The model file is mapped into memory once the run is about to begin.
    deadline = time.monotonic() + 60
    while str(model_file) not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "stopped\n"
    assert all(Path(tmp_path, line).is_file() for line in out.split())
    assert {p.name for p in tmp_path.iterdir()} == set(out.split())
