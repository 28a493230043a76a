"""What the images install is locked, licensed and listed; what is built installs with its own dependencies only."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from architecture.licences import DOCUMENT, IMAGES
from architecture.reference import ROOT
from charts.rendering import without

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BILLS = ROOT / ".build" / "sbom"


def lock(name: str) -> str:
    return (ROOT / f"requirements-{name}.lock").read_text()


def locked(name: str) -> dict[NormalizedName, str]:
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", lock(name), flags=re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


def wanted(name: str) -> list[Requirement]:
    if name == "build":
        return [*map(Requirement, PROJECT["build-system"]["requires"] + PROJECT["dependency-groups"]["image-build"])]
    project = PROJECT["project"]
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"][name]]


@pytest.mark.parametrize("name", [*IMAGES, "build"])
def test_a_lock_keeps_the_bounds_of_the_project(name: str) -> None:
    versions = locked(name)
    for requirement in wanted(name):
        found = versions.get(canonicalize_name(requirement.name))
        assert found is not None, f"{requirement}: run `make lock`"
        assert requirement.specifier.contains(found, prereleases=True), (
            f"{requirement}, locked {found}: run `make lock`"
        )


@pytest.mark.parametrize("name", [*IMAGES, "build"])
def test_every_package_of_a_lock_has_a_hash_and_no_place(name: str) -> None:
    entries = re.split(r"^(?=\S)", re.sub(r"^\s*#.*\n", "", lock(name), flags=re.MULTILINE), flags=re.MULTILINE)
    entries = [entry for entry in entries if entry]
    assert len(entries) == len(locked(name)) > 10
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|--(extra-)?index|--find-links|file:|^/", lock(name), flags=re.MULTILINE)


def test_both_images_have_the_same_version_of_a_package() -> None:
    operator, runtime = map(locked, IMAGES)
    assert {name: operator[name] for name in operator.keys() & runtime.keys()} == {
        name: runtime[name] for name in operator.keys() & runtime.keys()
    }


def test_the_licences_are_those_of_the_locks() -> None:
    rows = [line.split(" | ") for line in DOCUMENT.read_text().splitlines() if re.match(r"\| [\w.-]+ \| \d", line)]
    listed = {(canonicalize_name(name.strip("| ")), version) for name, version, *_ in rows}
    assert listed == {entry for image in IMAGES for entry in locked(image).items()}, "run `make licences`"


@pytest.mark.k8s
@pytest.mark.parametrize("image", IMAGES)
def test_the_bill_of_materials_of_an_image_lists_what_is_locked(image: str) -> None:
    path = BILLS / f"galvatron-{image}.cdx.json"
    if not path.exists():
        without(f"{path} is missing: `make images` writes it")
    bill = json.loads(path.read_text())
    assert bill["metadata"]["component"]["name"] == "galvatron-operator"
    listed = {canonicalize_name(part["name"]): Version(part["version"]).public for part in bill["components"]}
    # A build of torch for CPUs needs no CUDA; nothing else may be missing, or be there.
    for name, version in locked(image).items():
        if name in listed or not name.startswith(("nvidia-", "cuda-", "triton")):
            assert listed.pop(name, "nothing") == version
    assert not listed


def closure(requirements: list[Requirement]) -> set[str]:
    """Name the packages that these need, as they are installed here."""
    found: set[str] = set()
    remaining = list(requirements)
    while remaining:
        requirement = remaining.pop()
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in found:
            found.add(requirement.name)
            remaining += map(Requirement, distribution(requirement.name).requires or ())
    return found


def files_of(name: str) -> Iterator[Path]:
    """Name what a package has in its folder of packages, without what lies elsewhere."""
    installed = distribution(name)
    tops = {path.parts[0] for path in installed.files or () if path.parts[0] not in ("..", "__pycache__")}
    yield from (Path(str(installed.locate_file(top))) for top in tops)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, the wheel from it, and install that beside what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], cwd=ROOT, check=True)
    (source,) = folder.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, source)
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for name in closure([Requirement(text) for text in PROJECT["project"]["dependencies"]]):
        for path in files_of(name):
            (packages / path.name).symlink_to(path)
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    return python.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("galvatron", "plan", "--model", "bert-huge-32", "--cluster", "1x2xa100-80gb", "--batch", "8"),
        ("galvatron", "validate", ROOT / "docs" / "examples" / "quickstart.yaml"),
        ("galvatron", "render", ROOT / "docs" / "examples" / "gpt-2-node-cpu.yaml"),
        ("kubectl-galvatron", "--help"),
    ],
    ids=lambda command: command[1],
)
def test_what_is_built_works_without_extras(base: Path, tmp_path: Path, command: tuple[str | Path, ...]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([base / command[0], *command[1:]], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout
