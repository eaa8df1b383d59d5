"""Which modules does a model folder declare? What stands behind the transformer, in its order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vecstore.encoders.config import file_inside, read_config, read_json
from vecstore.encoders.pooling import POOLINGS, is_pooling
from vecstore.errors import EncoderError

# What vectors go through after the pooling: "normalize", or the folder of a Dense module.
Step = Path | Literal["normalize"]

_LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


# Each makes the vectors longer.
_MOST_POOLINGS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """What `modules.json` declares behind the transformer.

    Attributes:
        pooling: Names of poolings, concatenated; () where none is declared.
        skip_prompt: Whether the prompt's tokens are left out of the pooling.
        steps: What follows the pooling, in order.
        missing: Modules that are not known here, so that only the graph itself can hold them.
    """

    pooling: tuple[str, ...]
    skip_prompt: bool = False
    steps: tuple[Step, ...] = ()
    missing: tuple[str, ...] = ()


def transformer_folder(path: Path) -> Path:
    """The folder of the transformer of a model folder: itself, or one that it names.

    Raises:
        EncoderError: `modules.json` is damaged, or names a folder outside.
    """
    file = path / "modules.json"
    for module in listed_modules(file) or []:
        if str(module.get("type", "")).endswith(".Transformer"):
            return file_inside(path, module.get("path", ""), f"{file}")
    return path


def listed_modules(file: Path) -> list[dict[str, Any]] | None:
    """The modules of a `modules.json`; None if there is no such file, EncoderError if damaged."""
    listed = read_json(file)
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise EncoderError(f"{file} is not a list of modules")
    return listed


def read_modules(path: Path) -> Modules:
    """Read the modules of a model folder.

    Raises:
        EncoderError: A config file is damaged, or declares a pooling that is not known.
    """
    file = path / "modules.json"
    listed = listed_modules(file)
    if listed is None:
        # What sentence-transformers does with a bare transformer.
        pooling, skip_prompt = _pooling(path / "1_Pooling")
        return Modules(pooling=pooling, skip_prompt=skip_prompt)
    pooling, skip_prompt = (), False
    steps: list[Step] = []
    missing: list[str] = []
    for module in listed:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling, skip_prompt = _pooling(file_inside(path, module.get("path", ""), f"{file}"))
            if any(isinstance(step, Path) for step in steps):
                missing.append("Dense before Pooling")
        elif kind == "Normalize":
            steps.append("normalize")
        elif kind == "Dense":
            steps.append(file_inside(path, module.get("path", ""), f"{file}"))
        elif kind not in ("Transformer", "Dropout"):
            missing.append(kind)
    return Modules(
        pooling=pooling, skip_prompt=skip_prompt, steps=tuple(steps), missing=tuple(missing)
    )


def _pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """Return pooling and skip_prompt."""
    config = read_config(path / "config.json")
    if not config.values:
        return ("mean",), False
    declared = config.values.get("pooling_mode")
    if declared is None:
        flags = [key for key, on in config.values.items() if key.startswith("pooling_mode_") and on]
        unknown = [flag for flag in flags if flag not in _LEGACY_POOLINGS]
        modes = [mode for flag, mode in _LEGACY_POOLINGS.items() if flag in flags]
        if unknown:
            raise unknown_pooling(config.file, unknown[0])
    else:
        modes = list(check_pooling(config.file, declared))
    return tuple(modes) or ("mean",), config.values.get("include_prompt") is False


def check_pooling(file: Path, declared: object) -> tuple[str, ...]:
    """Return the poolings that a config file names, one or a list.

    Raises:
        EncoderError: One of them is not known, or there are none, or far too many.
    """
    modes = declared if isinstance(declared, list) else [declared]
    count = sum(str(mode).count("+") + 1 for mode in modes)
    if not 0 < count <= _MOST_POOLINGS:
        raise EncoderError(
            f"{file} declares {count} poolings, expected 1 to {_MOST_POOLINGS} of"
            f" {', '.join(POOLINGS)}"
        )
    for mode in modes:
        if not is_pooling(mode):
            raise unknown_pooling(file, mode)
    return tuple(modes)


def unknown_pooling(file: Path, mode: object) -> EncoderError:
    """The error of a pooling that is not known."""
    return EncoderError(
        f"{file} declares the pooling {mode!r:.60}, which is unknown; known are"
        f" {', '.join(POOLINGS)}"
    )
