"""What the loop can be told, each against the same run without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.training.small import CONFIG, Denoise, Prepared, Regression, small_clip
from torch import Tensor, nn

from langevin.errors import CheckpointError, NotFiniteError, RequestError
from langevin.training import checkpointing
from langevin.training.blocks import blocks
from langevin.training.config import Average, LoopConfig, Optimizer
from langevin.training.loop import Objective, learning_rate, train
from langevin.training.optimizers import make_optimizer, set_rate


def with_(**changes: Any) -> LoopConfig:
    return LoopConfig.model_validate({**CONFIG.model_dump(), **changes})


def run(objective: Objective, folder: Path, stop: int | None = None, resume: bool = False, **changes: Any) -> None:
    for step in (steps := train(objective, with_(**changes), folder, seed=0, resume=resume)):
        if step.step == stop:
            steps.close()


def files_of(run: Path, step: int | None = None) -> dict[str, dict[str, Tensor]]:
    folder = run / "checkpoints"
    newest = folder / f"{step or checkpointing.steps_saved(folder)[-1]:08d}"
    return {path.stem: load_file(path) for path in newest.glob("*.safetensors")}


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: Path, b: Path) -> None:
    left, right = files_of(a), files_of(b)
    assert left.keys() == right.keys()
    for part in left:
        assert left[part].keys() == right[part].keys()
        assert all(torch.equal(left[part][n], right[part][n]) for n in left[part]), part


# Averages


def test_decays_are_those_of_the_formulas() -> None:
    assert [Average(decay=0.9, warmup="none").at(n) for n in (0, 5)] == [0.9, 0.9]
    assert [Average(decay=0.5).at(n) for n in (0, 2, 1000)] == [0.1, 0.25, 0.5]
    power = Average(decay=0.9999, warmup="power")
    assert power.at(0) == 0 and power.at(7) == pytest.approx(1 - 8 ** (-2 / 3), abs=1e-15)
    assert power.at(31_622) == pytest.approx(0.999, abs=1e-7) and power.at(10**9) == 0.9999
    slower = Average(decay=0.9999, warmup="power", inverse_gamma=10, power=0.75)
    assert slower.at(70) == pytest.approx(1 - 8**-0.75, abs=1e-15)


def test_several_averages_are_kept_at_once_and_the_first_is_the_models(tmp_path: Path) -> None:
    averages = {"slow": {"decay": 0.99}, "fast": {"decay": 0.3, "warmup": "none"}}
    seen: list[Tensor] = []

    class Watched(Regression):
        def preview(self, module: nn.Module, path: Path) -> None:
            seen.append(module.state_dict()["0.weight"].clone())

    run(Watched(), tmp_path / "two", averages=averages, steps=12, save_every=1, keep=12)
    files = files_of(tmp_path / "two")
    assert files.keys() == {"weights", "optimizer", "slow", "fast"}
    assert torch.equal(seen[-1], files["slow"]["0.weight"])
    # The fast one by its recurrence, from the weights of every step.
    expected = Regression().module.state_dict()["0.weight"].double()
    for step in range(1, 13):
        expected = 0.3 * expected + 0.7 * files_of(tmp_path / "two", step)["weights"]["0.weight"].double()
    assert torch.allclose(files["fast"]["0.weight"].double(), expected, atol=1e-6)
    loaded = [
        checkpointing.load_ema(tmp_path / "two" / "checkpoints", Regression().module, name).state_dict()["0.weight"]
        for name in (None, "slow", "fast")
    ]
    assert torch.equal(loaded[0], loaded[1]) and torch.equal(loaded[2], files["fast"]["0.weight"])
    with pytest.raises(CheckpointError, match="holds no average 'ema': slow, fast"):
        checkpointing.load_ema(tmp_path / "two" / "checkpoints", Regression().module, "ema")
    # Nothing else knows of them.
    run(Regression(), tmp_path / "one", ema_decay=0.99, steps=12)
    assert torch.equal(files_of(tmp_path / "one")["ema"]["0.weight"], files["slow"]["0.weight"])
    assert torch.equal(files_of(tmp_path / "one")["weights"]["0.weight"], files["weights"]["0.weight"])


def test_a_checkpoint_from_before_an_option_existed_goes_on(tmp_path: Path) -> None:
    run(Regression(), tmp_path / "whole")
    run(Regression(), tmp_path / "cut", stop=23)
    path = tmp_path / "cut" / "checkpoints" / "00000023" / "state.json"
    state = json.loads(path.read_text())
    for name in ("averages", "groups", "scaler"):
        del state[name]
    for name in ("accumulate", "optimizer", "averages", "compile", "schedule", "channels_last"):
        del state["facts"]["loop"][name]
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"loop\.schedule = 'cosine', not 'constant'"):
        run(Regression(), tmp_path / "cut", resume=True, schedule="constant")
    run(Regression(), tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


# Optimisers


@pytest.mark.parametrize("name", list(Optimizer))
def test_every_optimiser_learns_and_goes_on_exactly(tmp_path: Path, name: Optimizer) -> None:
    if name.schedule_free:
        pytest.importorskip("schedulefree")
    if name is Optimizer.MUON:
        pytest.importorskip("pytorch_optimizer")
    options = {"optimizer": name, "schedule": "constant", "learning_rate": 0.05, "steps": 30}
    run(Regression(), tmp_path / "whole", **options)
    rows = rows_of(tmp_path / "whole")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["learning_rate"] == 0.05
    run(Regression(), tmp_path / "cut", stop=13, **options)
    run(Regression(), tmp_path / "cut", resume=True, **options)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    # How often it is looked at changes nothing: the schedule-free ones turn the weights over for that, and back.
    run(Regression(), tmp_path / "often", save_every=2, sample_every=3, **options)
    assert_same(tmp_path / "whole", tmp_path / "often")


def test_the_average_of_a_schedule_free_optimiser_is_its_own(tmp_path: Path) -> None:
    """x = y + (1 - 1/beta1)(z - y), Defazio et al. 2024, from y = (1 - beta1) z + beta1 x; and x is the mean of z."""
    pytest.importorskip("schedulefree")
    options = {"optimizer": "schedule_free_adamw", "schedule": "constant", "warmup": 0, "steps": 8, "keep": 8}
    run(Regression(), tmp_path, save_every=1, **options)
    files = [files_of(tmp_path, step) for step in range(1, 9)]
    y, x = files[-1]["weights"]["0.weight"], files[-1]["ema"]["0.weight"]
    z = [f["optimizer"]["0.z"] for f in files]
    assert z[-1].shape == y.shape
    assert torch.allclose(y + (1 - 1 / 0.9) * (z[-1] - y), x, atol=1e-6)
    assert torch.allclose(torch.stack(z).mean(0), x, atol=1e-6)
    assert not torch.equal(x, y)


def test_what_a_schedule_free_optimiser_cannot_have_is_refused() -> None:
    for changes, message in [
        ({}, "set schedule to constant"),
        ({"schedule": "constant", "averages": {"a": {}}}, "leave averages empty"),
        ({"schedule": "constant", "beta1": 0}, "needs more than 0"),
    ]:
        with pytest.raises(ValidationError, match=message):
            with_(optimizer="schedule_free_adamw", **changes)


def test_muon_moves_matrices_and_kernels_orthogonally_and_the_rest_as_adam_does() -> None:
    """Jordan et al. 2024 with Nesterov's momentum, Liu et al. 2025 (2.2): all singular values of a step are about
    0.2 sqrt(max(rows, columns)) of the rate. Adam's first step is the rate, here a quarter of it."""
    pytest.importorskip("pytorch_optimizer")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3), torch.nn.Embedding(5, 7))
    before = [p.detach().clone() for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = make_optimizer(module, with_(optimizer="muon", weight_decay=0))
    set_rate(optimizer, 0.01)
    optimizer.step()
    kernel, bias, embedding = (p.detach() - b for p, b in zip(module.parameters(), before, strict=True))
    # Five steps of the quintic iteration bring singular values to between 0.7 and 1.2, not to 1.
    sizes = torch.linalg.svdvals(kernel.flatten(1)) / (0.01 * 0.2 * 54**0.5)
    assert 0.6 < sizes.min() < sizes.max() < 1.3
    for step in (bias, embedding):
        torch.testing.assert_close(step.abs(), torch.full_like(step, 0.0025), rtol=1e-3, atol=0)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langevin.training.optimizers.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="needs the library schedulefree: pip install schedulefree"):
        run(Regression(), tmp_path, optimizer="schedule_free_radam", schedule="constant")
    with pytest.raises(RequestError, match="needs the library pytorch-optimizer: pip install pytorch-optimizer"):
        run(Regression(), tmp_path, optimizer="muon")


def test_a_constant_rate_follows_the_warm_up() -> None:
    rates = [learning_rate(with_(schedule="constant"), s) for s in (0, 4, 5, 59)]
    assert rates == pytest.approx([0.004, 0.02, 0.02, 0.02], rel=1e-12)


# Parts of a batch


def test_a_batch_in_parts_gives_the_weights_of_the_whole(tmp_path: Path) -> None:
    run(Prepared(dropout=0), tmp_path / "whole", batch_size=8)
    run(Prepared(dropout=0), tmp_path / "parts", batch_size=8, accumulate=4)
    left, right = files_of(tmp_path / "whole"), files_of(tmp_path / "parts")
    for part in left:
        for name, value in left[part].items():
            assert torch.allclose(value, right[part][name], atol=2e-5), (part, name)
    for a, b in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["once"] == pytest.approx(b["once"], abs=1e-5)


def test_what_cannot_be_taken_in_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="batch_size 7 is not a multiple of accumulate 2"):
        with_(accumulate=2)
    with pytest.raises(RequestError, match=r"accumulate 2: this stage compares the samples of a batch"):
        run(small_clip(), tmp_path, batch_size=4, accumulate=2)


# Precision, memory, speed


def test_activations_computed_again_give_the_same_weights(tmp_path: Path) -> None:
    """Also with dropout, whose numbers have to come again; and a run may change over."""
    options = {"steps": 3, "batch_size": 4, "save_every": 3}
    plain, again = Denoise(dropout=0.3), Denoise(dropout=0.3)
    names = list(again.module.state_dict())
    run(plain, tmp_path / "plain", **options)
    run(again, tmp_path / "again", recompute=True, **options)
    assert_same(tmp_path / "plain", tmp_path / "again")
    assert list(again.module.state_dict()) == names and blocks(again.module)

    kept: list[int] = []
    for objective in (plain, again):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            objective.module.train()
            objective.loss([(0, 0), (0, 1)], 0)
        kept.append(-1)
    first = kept.index(-1)
    assert sum(kept[first + 1 : -1]) < 0.5 * sum(kept[:first])
    with pytest.raises(RequestError, match="a Sequential has no blocks to compute again"):
        run(Regression(), tmp_path / "none", recompute=True)


def test_channels_last_gives_the_same_weights_but_for_rounding(tmp_path: Path) -> None:
    options = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    run(Denoise(), tmp_path / "plain", **options)
    run(turned := Denoise(), tmp_path / "turned", channels_last=True, **options)
    assert turned.module.input_blocks[0][0].weight.stride()[1] == 1  # type: ignore[index, union-attr]
    left, right = files_of(tmp_path / "plain")["ema"], files_of(tmp_path / "turned")["ema"]
    assert all(torch.allclose(left[n], right[n], atol=1e-4) for n in left)
    # The moments have to come back in the order in memory that the weights have.
    run(Denoise(), tmp_path / "cut", stop=2, channels_last=True, **options)
    run(Denoise(), tmp_path / "cut", resume=True, channels_last=True, **options)
    assert_same(tmp_path / "turned", tmp_path / "cut")


def test_compiling_goes_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    run(objective := Denoise(), tmp_path / "blocks", steps=1, batch_size=2, compile=True)
    assert compiled == blocks(objective.module)
    run(whole := Regression(), tmp_path / "whole", steps=1, compile=True)
    assert compiled[-1] is whole.module


@pytest.mark.slow
def test_compiled_training_gives_the_same_weights_but_for_rounding(tmp_path: Path) -> None:
    options = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    run(Denoise(), tmp_path / "plain", **options)
    run(Denoise(), tmp_path / "compiled", compile=True, **options)
    left, right = files_of(tmp_path / "plain")["ema"], files_of(tmp_path / "compiled")["ema"]
    assert left.keys() == right.keys() and all(torch.allclose(left[n], right[n], atol=1e-4) for n in left)


class Overflowing(Regression):
    """Whose gradient overflows at some steps as long as the loss is scaled by more than `bearable`."""

    def __init__(self, steps: tuple[int, ...], bearable: float) -> None:
        super().__init__()
        self.steps, self.bearable = steps, bearable

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, extra = super().loss(samples, step)
        if step in self.steps:
            loss.register_hook(lambda g: torch.where(g > self.bearable, torch.inf, g))
        return loss, extra


def test_float16_leaves_out_and_records_the_steps_that_overflow(tmp_path: Path) -> None:
    options = {"precision": "float16", "log_every": 1}
    run(Overflowing((3, 4), 0), tmp_path / "whole", **options)
    rows = rows_of(tmp_path / "whole")
    # The first step overflows by itself, at the scale of 65536 that torch begins with.
    assert [row["step"] for row in rows if row["skipped_steps"]] == [1, 4, 5]
    assert [row["loss_scale"] for row in rows[2:6]] == [32768, 16384, 8192, 8192]
    assert ["gradient_norm" in row for row in rows[:6]] == [False, True, True, False, False, True]
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    for stop in (4, 23):
        run(Overflowing((3, 4), 0), tmp_path / f"cut-{stop}", stop=stop, **options)
        run(Overflowing((3, 4), 0), tmp_path / f"cut-{stop}", resume=True, **options)
        assert_same(tmp_path / "whole", tmp_path / f"cut-{stop}")
        assert rows_of(tmp_path / f"cut-{stop}")[-1]["loss_scale"] == 8192
    with pytest.raises(NotFiniteError, match=r"gradient's norm is (inf|nan) at step 16 "):
        run(Overflowing(tuple(range(60)), 0), tmp_path / "hopeless", **options)


# Batches ahead


def test_the_number_of_workers_cannot_be_seen_in_the_weights(tmp_path: Path) -> None:
    run(Prepared(), tmp_path / "0")
    for workers in (1, 3):
        run(Prepared(), tmp_path / str(workers), workers=workers)
        assert_same(tmp_path / "0", tmp_path / str(workers))
    run(Prepared(), tmp_path / "cut", stop=31, workers=2)
    run(Prepared(), tmp_path / "cut", resume=True)
    assert_same(tmp_path / "0", tmp_path / "cut")
    run(small_clip(), tmp_path / "clip-0", batch_size=4, steps=5)
    run(small_clip(), tmp_path / "clip-2", batch_size=4, steps=5, workers=2)
    assert_same(tmp_path / "clip-0", tmp_path / "clip-2")


def test_what_goes_wrong_in_a_worker_is_said_at_its_step(tmp_path: Path) -> None:
    class Broken(Prepared):
        def prepare(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, Tensor]:
            if step == 12:
                raise OSError("the disk is gone")
            return super().prepare(samples, step)

    done = []
    with pytest.raises(OSError, match="the disk is gone"):
        for step in train(Broken(), with_(workers=2), tmp_path, seed=0):
            done.append(step.step)
    assert done == list(range(1, 13))
    with pytest.raises(RequestError, match=r"loop\.workers 2: this stage has nothing to prepare ahead"):
        run(Regression(), tmp_path / "none", workers=2)
