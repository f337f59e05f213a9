"""Find a model by the guide's name, its Hugging Face id, or a folder with a config.json."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean
from paretoserve.models.dimensions import Checkpoint, Model
from paretoserve.models.huggingface import parse_config, read_config, uniform


def model_names() -> tuple[str, ...]:
    """Return the guide's names of the models in config/models."""
    return tuple(sorted(file.stem for file in paths.MODELS.glob("*.yaml")))


@cache
def find_model(name: str) -> Model:
    """Return the model of this name.

    Parameters
    ----------
    name
        The guide's name (QWEN3_32B), a Hugging Face id (Qwen/Qwen3-32B) of config/models, both in
        any case, or a folder with a config.json. The model of a folder is named by its full path,
        so that its name finds it again.

    Raises
    ------
    InputError
        No such model, or its configuration is unreadable, incomplete or of an architecture that is
        not supported.
    """
    folded = name.lower()
    for file in paths.MODELS.glob("*.yaml"):
        if file.stem.lower() == folded:
            return _catalogued(file)
    for file in paths.MODELS.glob("*.yaml"):
        if folded in file.read_text().lower():  # parsing every file would take far longer
            ids = {id.lower(): checkpoint for id, checkpoint in _checkpoints(file).items()}
            if folded in ids:
                return replace(_catalogued(file), checkpoint=ids[folded])
    folder = Path(name)
    if _is_folder(folder):
        return read_config(folder, str(folder.resolve()))
    known = [*model_names(), *_all_ids()]
    raise InputError(
        f"unknown model '{name}'{did_you_mean(name, known)}; known models: "
        f"{', '.join(model_names())}, their Hugging Face ids, or a folder with a config.json"
    )


def checkpoints(name: str) -> dict[str, Checkpoint | None]:
    """Return the Hugging Face ids of a model by the guide's name, with what each is quantised to.

    None: not quantised. A model of a folder has no ids.
    """
    file = paths.model_file(name)
    return _checkpoints(file) if file.is_file() else {}


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than the file system takes
        return False


def _catalogued(file: Path) -> Model:
    entry = _read(file)
    if not isinstance(entry.get("config"), dict):
        raise InputError(f"{file}: field 'config' must hold the model's dimensions")
    return parse_config(entry["config"], str(file), file.stem)


def _checkpoints(file: Path) -> dict[str, Checkpoint | None]:
    """Hugging Face ids, each with what it is quantised to: one mode, or one for each part."""
    entry = _read(file)
    found: dict[str, Checkpoint | None] = dict.fromkeys(entry.get("huggingface", ()))
    for id, modes in entry.get("quantised", {}).items():
        found[id] = uniform(modes) if isinstance(modes, str) else Checkpoint(**modes)
    return found


def _all_ids() -> list[str]:
    entries = [_read(file) for file in paths.MODELS.glob("*.yaml")]
    return [
        id for entry in entries for key in ("huggingface", "quantised") for id in entry.get(key, ())
    ]


def _read(file: Path) -> dict[str, Any]:
    try:
        entry = yaml.load(file.read_bytes(), yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{file}: is not YAML: {error}".replace("\n", " ")) from error
    if not isinstance(entry, dict):
        raise InputError(f"{file}: must hold a mapping")
    return entry
