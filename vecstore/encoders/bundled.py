"""Which models come with the package? Each by its name, or by a name with a layer or a dim."""

from __future__ import annotations

import re
from pathlib import Path

from vecstore.encoders.folder import ModelFolder
from vecstore.encoders.onnx import OnnxEncoder
from vecstore.errors import ModelNotFoundError, UsageError
from vecstore.spec import show

_CODE = Path(__file__).resolve().parents[1]
# A name, then options in any order, each once: "default", "default/layer=4/dim=128".
_VARIANT = re.compile(r"(?P<base>.+?)(?:/layer=(?P<layer>\d{1,3})|/dim=(?P<dim>\d{1,5}))*")
_BUNDLED: dict[str, OnnxEncoder] = {}


def bundled(name: str = "default") -> OnnxEncoder:
    """Return the encoder of a model that comes with the package, one instance for each name.

    Args:
        name: The model's name; behind it may stand the layers and the numbers of each vector that
            are wanted, as in "default/layer=4/dim=128".

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: It does not offer so many layers, or such a prefix.
    """
    if not isinstance(name, str):
        raise UsageError(f'name={show(name)} must be a str, such as "default"')
    if name not in _BUNDLED:
        base, layer, dim = parse(name)
        folder = _bundled_folders().get(base)
        if folder is None:
            known = ", ".join(sorted(_bundled_folders())) or "none"
            raise ModelNotFoundError(f"no bundled model is named {name!r}; bundled are: {known}")
        encoder = OnnxEncoder(folder, name=base, layer=layer, dim=dim)
        encoder._known_digests = _recorded_digests(encoder._folder)
        # Of two threads that come here at once, both get the first one's; and of two names for the
        # same, such as one with the model's own dim, both get the shorter one's.
        _BUNDLED[name] = _BUNDLED.setdefault(encoder.name, encoder)
    return _BUNDLED[name]


def parse(name: str) -> tuple[str, int | None, int | None]:
    """Return the base name, the layer and the dim that a name states."""
    found = _VARIANT.fullmatch(name)
    if found is None or name.count("/layer=") > 1 or name.count("/dim=") > 1:
        return name, None, None
    layer, dim = (None if found[part] is None else int(found[part]) for part in ("layer", "dim"))
    return found["base"], layer, dim


def is_bundled(name: str) -> bool:
    """Whether a name is that of a bundled model, with or without a layer and a dim."""
    return parse(name)[0] in _bundled_folders()


def bundled_names() -> list[str]:
    """Return the names that `bundled` knows."""
    return sorted(_bundled_folders())


def _bundled_folders() -> dict[str, Path]:
    roots = [_CODE / "models"]
    # Beside an installed package there may be a folder `models` of somebody else's.
    if (_CODE.parent / "pyproject.toml").is_file():
        roots.append(_CODE.parent / "models")
    return {
        folder.name: folder
        for root in reversed(roots)
        if root.is_dir()
        for folder in root.iterdir()
        if (folder / "model.onnx").is_file()
    }


def _recorded_digests(folder: ModelFolder) -> dict[str, str]:
    names = {"model": folder.model.name, "tokenizer": folder.tokenizer.name}
    if set(folder.digests) != set(names.values()):
        return {}
    return {role: folder.digests[name] for role, name in names.items()}
