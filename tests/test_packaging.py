"""A wheel, a wheel made from the sdist, and the editable checkout all find the catalogue from any folder."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import simulator
from simulator.specs.catalogue import FOLDERS, Catalogue

ROOT = Path(__file__).parent.parent
CATALOGUE_IDS = """
import simulator
from simulator.specs.catalogue import FOLDERS, Catalogue
print(simulator.__file__)
print(*(f"{kind}/{name}" for kind in FOLDERS for name in Catalogue().ids(kind)))
"""

pytestmark = pytest.mark.slow


def python(folder: Path, *arguments: str, path: Path | None = None) -> str:
    """What the interpreter prints, run in `folder` with `path` before installed packages."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PLACEWRIGHT")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, folder: Path, target: str) -> Path:
    """Build an sdist or a wheel of `source`; its file."""
    python(source, "-m", "hatchling", "build", "-t", target, "-d", str(folder))
    (built,) = (path for path in folder.iterdir() if path.is_file())
    return built


def found(folder: Path, path: Path | None = None) -> tuple[Path, list[str]]:
    """From where the package is imported in `folder`, and the ids that it finds."""
    file, names = python(folder, "-c", CATALOGUE_IDS, path=path).splitlines()
    return Path(file).parent, names.split()


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return [f"{kind}/{name}" for kind in FOLDERS for name in Catalogue((ROOT,)).ids(kind)]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, folder, "sdist")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


def test_the_sdist_holds_what_one_needs_to_go_on(sdist: Path) -> None:
    names = ("README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints-cpu.txt", "tests", "models")
    assert [name for name in names if not (sdist / name).exists()] == []


@pytest.mark.parametrize("origin", ["checkout", "sdist"])
def test_a_wheel_finds_its_catalogue(
    origin: str, sdist: Path, tmp_path: Path, expected: list[str]
) -> None:
    wheel = build(ROOT if origin == "checkout" else sdist, tmp_path / "wheel", "wheel")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    python(
        elsewhere, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)
    )
    assert found(elsewhere, site) == (site / "simulator", expected)
    assert "h100-sxm" in python(elsewhere, str(site / "bin" / "placewright"), "list", "devices", path=site)
    assert list(site.glob("*.dist-info/licenses/LICENSE"))


def test_the_editable_checkout_finds_its_catalogue(tmp_path: Path, expected: list[str]) -> None:
    assert found(tmp_path) == (Path(simulator.__file__).parent, expected)
