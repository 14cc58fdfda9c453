"""The wheel and the editable install both hold what the commands need, quantize/ and the demo model included."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROBE = (
    "import mixq.quantize.job, mixq.models, mixq.system.paths, mixq; "
    "print(mixq.__file__); print(mixq.system.paths.demo_source())"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("mixq", "quantize", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_every_module_and_the_demo_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (("mixq", "mixq"), ("quantize", "mixq/quantize"), ("models", "mixq/models")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{package}/{path.relative_to(ROOT / folder)}" in names
    assert {"mixq/py.typed", "mixq/models/demo/config.json", "mixq/models/demo/tokenizer.model"} <= names
    assert any(n.startswith("mixq/models/demo/") and n.endswith(".safetensors") for n in names)


def test_wheel_puts_nothing_but_mixq_into_site_packages(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"mixq"}


def test_installed_wheel_imports_and_finds_the_demo_model(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    out = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, env={"PYTHONPATH": str(target)}, check=True, capture_output=True
    ).stdout.decode()
    package, demo = (Path(line) for line in out.split())
    assert package.is_relative_to(target)
    assert (demo / "config.json").is_file()


def test_editable_install_maps_quantize_and_models(tmp_path: Path) -> None:
    out = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, check=True, capture_output=True).stdout.decode()
    package, demo = (Path(line) for line in out.split())
    assert package == ROOT / "mixq" / "__init__.py"
    assert demo == ROOT / "models" / "demo"


def test_python_m_mixq_is_the_console_script(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mixq", "--version"]
    out = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert out.startswith("mixq ")
