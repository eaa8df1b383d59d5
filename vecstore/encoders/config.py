"""What does a config file of a model folder say? Only JSON is read, and nothing of it is trusted.

A name that leads outside the folder is refused, and so is a file that no encoder needs to be that
large.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vecstore.errors import EncoderError
from vecstore.spec import show

_MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """The object of a config file, empty where there is no such file."""

    file: Path
    values: Mapping[str, Any]

    def integer(self, key: str, least: int, most: int) -> int | None:
        """Return an integer of a range, or None where there is none; EncoderError else."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise self.error(key, f"an integer in {least}..{most}")
        return value

    def string(self, key: str) -> str | None:
        """Return a string, or None where there is none; EncoderError else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def error(self, key: str, expected: str) -> EncoderError:
        """The error of a value that is not what it must be."""
        return EncoderError(f"{self.file}: {key}={self.values.get(key)!r:.60} must be {expected}")


def read_config(file: Path) -> Config:
    """Read a config file.

    Raises:
        EncoderError: It cannot be read, is no JSON object, or is far too large.
    """
    values = read_json(file)
    if values is not None and not isinstance(values, dict):
        raise EncoderError(f"{file} is not a JSON object")
    return Config(file, values or {})


def read_json(file: Path) -> Any:
    """Return the value of a JSON file, or None if there is no such file; EncoderError as above."""
    try:
        status = file.stat()
        if status.st_size > _MAX_CONFIG_BYTES:
            raise EncoderError(f"{file} is larger than {_MAX_CONFIG_BYTES >> 20} MiB")
        if not stat.S_ISREG(status.st_mode):
            # A pipe, or a link to a device, would be waited for or read without end.
            raise EncoderError(f"{file} is not a file")
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EncoderError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{file} is not valid JSON: {error}") from None


def is_file(path: Path) -> bool:
    """Whether there is such a file; EncoderError where that cannot be found out."""
    with _readable(path):
        return path.is_file()


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; EncoderError where that cannot be found out."""
    with _readable(path):
        return path.is_dir()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say what a file is called that the system refuses to look at, as one of too long a name."""
    try:
        yield
    except OSError as error:
        what = show(str(path), 200)
        raise EncoderError(f"{what} cannot be read: {error.strerror or error}") from None


def file_inside(folder: Path, name: object, named_by: str) -> Path:
    """Return `folder / name`, or raise EncoderError if the name leads outside the folder."""
    if not isinstance(name, str):
        raise EncoderError(f"{named_by} names a file by {name!r:.60}, expected a str")
    parts = PurePosixPath(name)
    # Backslash and colon separate folders and drives where these files may come from.
    if parts.is_absolute() or ".." in parts.parts or any(sign in name for sign in "\\:\0"):
        raise EncoderError(f"{named_by} names {name!r:.60}, which is outside the model folder")
    return folder / parts
