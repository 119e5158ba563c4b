"""What importing costs, counted in modules: time would depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "PIL", "safetensors", "tokenizers", "huggingface_hub", "transformers", "diffusers", "scipy")


def modules_after(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter has after running `code`."""
    script = f"import sys, json\n{code}\nprint('MODULES', json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.rpartition("MODULES")[2]))


@pytest.fixture(scope="module")
def bare() -> set[str]:
    return modules_after("")


def heavy(modules: set[str]) -> set[str]:
    return {m.partition(".")[0] for m in modules} & set(HEAVY)


def test_import_langevin_is_nothing_but_its_own_names(bare: set[str]) -> None:
    found = modules_after("import langevin; langevin.__version__; dir(langevin); langevin.LangevinError") - bare
    assert {m for m in found if m.startswith("langevin")} == {"langevin", "langevin.errors", "langevin.version"}
    assert not heavy(found)
    assert len(found) < 25, sorted(found)


def test_requests_need_pydantic_but_not_torch(bare: set[str]) -> None:
    found = (
        modules_after("import langevin; langevin.GenerateRequest(prompt='a'); langevin.tasks.GenerateRequest") - bare
    )
    assert "pydantic" in found and not heavy(found)


def test_help_does_not_import_torch(bare: set[str]) -> None:
    commands = [["--help"], ["--version"]]
    names = ("generate", "reproduce", "explain", "convert", "info", "selftest", "train", "finetune", "evaluate")
    commands += [[name, "--help"] for name in (*names, "compare", "shapes", "upscale", "cascade", "large")]
    found = modules_after(f"from langevin.cli.main import run; assert not any([run(c) for c in {commands}])") - bare
    assert not heavy(found)
    assert len(found) < 500, len(found)


def test_mistakes_are_found_without_torch(bare: set[str]) -> None:
    code = "from langevin.cli.main import run; assert run(['generate', 'a', '--steps', '0', '-o', 'a.png']) == 2"
    assert not heavy(modules_after(code) - bare)


def test_every_public_name_is_there() -> None:
    code = (
        "import langevin, langevin.tasks\n"
        "for module in (langevin, langevin.tasks):\n"
        "    assert set(module.__all__) == set(dir(module)), module\n"
        "    for name in module.__all__:\n"
        "        assert getattr(module, name).__name__ if name != '__version__' else langevin.__version__\n"
        "for module in (langevin, langevin.tasks):\n"
        "    try: module.nothing\n"
        "    except AttributeError as error: assert 'nothing' in str(error)\n"
        "    else: raise AssertionError\n"
    )
    assert "torch" in modules_after(code)


def test_the_references_are_imported_by_tests_alone(bare: set[str]) -> None:
    found = modules_after("import langevin; [getattr(langevin, n) for n in langevin.__all__]") - bare
    assert not heavy(found) & {"diffusers", "transformers", "scipy"}
