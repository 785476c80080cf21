"""Classes that a model's directory brings for `transformers`: run only where the command line says so.

A `config.json` with an `auto_map` names classes in Python files beside it. Once they are registered, `transformers`
finds them by the config's `model_type`, as it finds its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sprunec.checkpoint.layouts import CONFIG
from sprunec.errors import InputError

FLAG = "--trust-remote-code"
CONFIG_CLASS, MODEL_CLASS = "AutoConfig", "AutoModelForCausalLM"
MODULES = "transformers_modules"  # the package that the library imports such files as
_folders: list[str] = []  # where their copies are, for as long as directories are trusted
_adopted: dict[Path, tuple[Path, ...]] = {}


@contextmanager
def trusted(wanted: bool = True) -> Iterator[None]:
    """Let directories bring classes meanwhile; nothing of them is left in the user's own cache."""
    if not wanted:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="sprunec-code-", ignore_cleanup_errors=True) as folder:
        before = _take_modules()
        _folders.append(folder)
        try:
            yield
        finally:
            _folders.remove(folder)
            _take_modules()
            sys.modules.update(before)


def is_trusted() -> bool:
    return bool(_folders)


def brings_code(document: Mapping[str, Any]) -> bool:
    """Tell whether a config.json names a class of its own for causal language models."""
    classes = document.get("auto_map")
    return isinstance(classes, Mapping) and MODEL_CLASS in classes


def code_files(directory: Path) -> tuple[Path, ...]:
    """List the Python files of a directory whose classes are used; none of any other."""
    return _adopted.get(directory.resolve(), ())


def adopt(directory: Path, document: Mapping[str, Any]) -> None:
    """Run a trusted directory's code, and register its classes with `transformers` as those of its `model_type`.

    Args:
        document: its config.json, which `brings_code`.

    Raises:
        InputError: a file is missing, the code fails, or it is no code of such classes.
    """
    assert is_trusted()
    classes = {auto: document["auto_map"].get(auto) for auto in (CONFIG_CLASS, MODEL_CLASS)}
    for auto, reference in classes.items():
        if reference is not None:
            _check_there(directory, auto, reference)
    try:
        _register(directory, document.get("model_type"), classes[CONFIG_CLASS], classes[MODEL_CLASS])
    except (Exception, SystemExit) as error:  # whatever its code does
        message = f"the model's own code cannot be used: {type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError.at(directory / CONFIG, message, "mend it, or install what it needs", "remote-code") from error
    _adopted[directory.resolve()] = tuple(sorted(directory.glob("*.py")))


def _check_there(directory: Path, auto: str, reference: Any) -> None:
    """Check that a class is named as `file.Class`, and the file beside the config."""
    file, _, name = str(reference).rpartition(".")
    if not isinstance(reference, str) or not file.isidentifier() or not name.isidentifier():
        message, hint = f"its auto_map has {reference} as {auto}", "give it as file.Class, of a file in this directory"
        raise InputError.at(directory / CONFIG, message, hint, "remote-code")
    if not (directory / f"{file}.py").is_file():
        message = f"its auto_map names {reference} as {auto}, and there is no {file}.py beside it"
        raise InputError.at(directory / CONFIG, message, "copy or download what is missing", "missing-file")


def _register(directory: Path, kind: Any, config: str | None, model: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cache, dynamic_module_utils.HF_MODULES_CACHE = dynamic_module_utils.HF_MODULES_CACHE, _folders[-1]
    before = [*sys.path]
    sys.path[:] = [path for path in before if not (Path(path) / MODULES).is_dir()]  # the user's own cache
    try:
        load = dynamic_module_utils.get_class_from_dynamic_module
        # Release 5 imports each file with its own copy of what it imports, release 4 the first one again if it is asked
        # for later. The model goes by the config class that it knows.
        config_class = None if config is None else load(config, directory)
        model_class = load(model, directory)
        if config_class is not None:
            known = getattr(model_class, "config_class", None)
            same = known is not None and known.__name__ == config_class.__name__
            AutoConfig.register(kind, known if same else config_class, exist_ok=True)
        AutoModelForCausalLM.register(CONFIG_MAPPING[kind], model_class, exist_ok=True)
    finally:
        dynamic_module_utils.HF_MODULES_CACHE = cache
        sys.path[:] = before  # from here on the packages in `sys.modules` know where they are


def _take_modules() -> dict[str, Any]:
    """Take away what has been imported of directories: another one's package has another place."""
    names = [name for name in sys.modules if name == MODULES or name.startswith(f"{MODULES}.")]
    return {name: sys.modules.pop(name) for name in names}
