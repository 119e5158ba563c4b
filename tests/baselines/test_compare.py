"""Families compared on a small scale: table, plot, going on, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.baselines.conftest import SIZE

from langevin.baselines.compare import Clock, Result, Settings, configured, train_stage
from langevin.baselines.recipes import RECIPES
from langevin.baselines.report import table
from langevin.cli.compare import FAMILY_NAMES
from langevin.cli.main import run as langevin
from langevin.errors import RequestError
from langevin.training.config import override
from langevin.training.data import PictureSet

SMALL = {
    "diffusion": ("diffusion.network.model_channels=32", "diffusion.network.channel_mult=[1]",
                  "diffusion.network.attention_levels=[false]", "diffusion.network.middle_attention=false",
                  "diffusion.schedule.steps=25"),
    "gan": ("gan.network.size=8", "gan.network.width=4", "gan.loop.batch_size=8"),
    "pixelcnn": RECIPES["pixelcnn-fashion"]().trial,
    "imagegpt": RECIPES["imagegpt-fashion"]().trial,
    "latent": RECIPES["latent-fashion"]().trial,
}  # fmt: skip


def assignments(*names: str) -> list[str]:
    return [f"{name}.{text}" for name in names for text in (*SMALL[name], f"data.size={SIZE}")]


def words(data: Path, out: Path, classifier: Path, *names: str) -> list[str]:
    return [
        "compare", "--data", str(data), "--out", str(out), "--steps", "2", "--families", ",".join(names),
        "--features", f"classifier={classifier}", "--samples", "12", "--batch", "8", "--likelihood-samples", "2",
        "--sampler-steps", "3", *(part for text in assignments(*names) for part in ("--set", text)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compared(grey_folder: Path, classifier_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    assert langevin(words(grey_folder, out, classifier_file, *FAMILY_NAMES)) == 0
    return out


def test_one_table_one_plot_and_a_sheet_for_each_family(compared: Path) -> None:
    lines = (compared / "compare.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[:8] if "---" not in line] == [
        "family", *FAMILY_NAMES, "real pictures",
    ]  # fmt: skip
    assert len({len(line) for line in lines[:8]}) == 1
    assert (compared / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert (compared / "real.png").is_file()
    results = {r["family"]: Result.from_json(r) for r in json.loads((compared / "compare.json").read_text())}
    for name, result in results.items():
        assert (compared / name / "samples.png").is_file()
        assert result.seconds_per_picture > 0 and result.seconds_alone > 0 and result.training_seconds > 0
        frechet = result.figure("frechet")
        assert frechet is not None and frechet.real is not None and frechet.generated == frechet.reference == 12
        assert (result.figure("bits/dim") is not None) == (name in ("diffusion", "pixelcnn", "imagegpt"))
        assert [s.steps for s in result.stages.values()] == [2] * (2 if name == "latent" else 1)


def test_a_finished_family_is_not_done_again(
    compared: Path, grey_folder: Path, classifier_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(compared, tmp_path / "out")
    before = (tmp_path / "out" / "compare.json").read_text()
    weights = tmp_path / "out" / "gan" / "model.safetensors"
    weights.unlink()
    assert langevin(words(grey_folder, tmp_path / "out", classifier_file, *FAMILY_NAMES)) == 0
    assert (tmp_path / "out" / "compare.json").read_text() == before and not weights.exists()


def test_measuring_again_gives_the_same_figures(
    compared: Path, grey_folder: Path, classifier_file: Path, tmp_path: Path
) -> None:
    """A family whose training is finished goes on with sampling: what was cut off is done again, to the digit."""
    shutil.copytree(compared, tmp_path / "out")
    path = tmp_path / "out" / "pixelcnn" / "result.json"
    before = Result.from_json(json.loads(path.read_text()))
    path.unlink()
    assert langevin(words(grey_folder, tmp_path / "out", classifier_file, "pixelcnn")) == 0
    after = Result.from_json(json.loads(path.read_text()))
    assert after.figures == before.figures and after.training_seconds == before.training_seconds


def test_other_settings_are_refused(
    compared: Path, grey_folder: Path, classifier_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(grey_folder, compared, classifier_file, "gan")
    for more, message in [
        (["--seed", "1"], "was begun with seed = 0, not 1: give the same options, or another --out"),
        (["--set", "gan.gan.r1=2"], "is of another configuration of gan: give another --out"),
        (["--minutes", "1"], "compare needs a budget: give either --minutes or --steps"),
        (["--samples", "60"], "the split t10k has 96 pictures: --samples 60 needs twice as many"),
        (["--held-out", "train"], "held-out train: the recipes train on that split; give another"),
        (["--clock", "sun"], "clock 'sun' is unknown; choose wall or cpu"),
        (["--families", "gan,flow"], "families 'flow': choose from diffusion, gan"),
        (["--set", "latent.seed=1"], "--set latent.seed=1: begin with one of the compared families, gan"),
    ]:
        assert langevin([*given, *more]) == 2
        assert message in capsys.readouterr().err
    assert langevin(["compare"]) == 2
    assert "compare needs --data and --out" in capsys.readouterr().err


def test_the_clock_stops_training_and_counts_all_sittings(grey: PictureSet, tmp_path: Path) -> None:
    settings = Settings(minutes=1.0, steps=None)
    system = override(configured("gan", settings, assignments("gan")), ["gan.loop.save_every=3"])
    first = train_stage(system, "gan", grey, tmp_path, 0.05, Clock.WALL, lambda text: None)
    assert first.seconds >= 0.05 and first.steps > 1 and first.setup_seconds > 0
    again = train_stage(system, "gan", grey, tmp_path, 0.05, Clock.WALL, lambda text: None)
    assert (again.steps, again.seconds) == (first.steps, first.seconds)
    longer = train_stage(system, "gan", grey, tmp_path, first.seconds + 0.05, Clock.CPU, lambda text: None)
    assert longer.steps > first.steps and longer.seconds >= first.seconds + 0.05


def test_a_run_by_the_clock_keeps_its_rate() -> None:
    loop = configured("imagegpt", Settings(minutes=1.0, steps=None)).loops["imagegpt"]
    assert loop.final_rate == 1
    loop = configured("imagegpt", Settings(minutes=None, steps=7)).loops["imagegpt"]
    assert loop.steps == 7 and loop.final_rate < 1
    with pytest.raises(RequestError, match="minutes 0 is out of range"):
        Settings(minutes=0.0, steps=None)


def test_names_on_the_command_line_are_the_families() -> None:
    from langevin.baselines.families import FAMILIES

    assert tuple(FAMILIES) == FAMILY_NAMES


def test_the_table_shows_what_was_measured(compared: Path) -> None:
    results = [Result.from_json(r) for r in json.loads((compared / "compare.json").read_text())]
    frechet = results[1].figure("frechet")
    assert frechet is not None
    row = table(results).splitlines()[3].split("|")
    assert row[1].strip() == "gan" and row[2].strip() == f"{frechet.value:.3g}"
    assert row[7].strip() == "-"
