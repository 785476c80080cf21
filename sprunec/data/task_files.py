"""Task files of lm-eval: YAML that says where samples lie and how they are put into words.

They may name Python functions and other code. Here nothing of it is run: who runs it says so on the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from sprunec.errors import Diagnostic, InputError, show
from sprunec.families.own_code import FLAG, is_trusted
from sprunec.text_files import ANY_TEXT, read_text

ENDINGS = (".yaml", ".yml")
PACKAGE, INSTALL = "lm_eval", "pip install 'sprunec[eval]'"
READERS = ("json", "csv", "parquet", "text")  # of `datasets`, that read files and run nothing
RUNNING = ("pandas", "sql", "spark")  # others of its own: pickles, and what a server is asked
LARGEST_FILE = 1024 * 1024
MOST_ITEMS = 100_000  # aliases may stand for one thing any number of times

Function = Callable[[str, Path], Any]  # of `module.name` and the folder of the file that names it


@dataclass(frozen=True)
class TaskFile:
    """What a task file says, with what it includes.

    Attributes:
        config: with places of data as absolute paths.
        files: all that it is made of: itself, what it includes, its data, the code beside it.
        lacking: data that is not there.
    """

    config: dict[str, Any]
    files: tuple[Path, ...]
    lacking: tuple[Path, ...]

    @property
    def name(self) -> str:
        return str(self.config.get("group") or self.config["task"])


def is_task_file(task: str) -> bool:
    """Tell a file from the name of one of lm-eval's own tasks."""
    return task.endswith(ENDINGS)


def read_task_file(path: Path, function: Function | None = None) -> TaskFile:
    """Read a task file.

    Args:
        function: gives what `!function` names; None: the name, where code may be run, which is else refused.

    Raises:
        InputError: it cannot be read, is no task, or would run code that nobody has trusted.
    """
    reader = _Reader(function)
    config = reader.merged(path)
    if not any(isinstance(config.get(key), str) for key in ("task", "group")):
        raise InputError.at(path, "it names no task", 'give it a name: "task: mine"', "bad-task")
    return TaskFile(config, tuple(dict.fromkeys(reader.files)), tuple(dict.fromkeys(reader.lacking)))


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Go through everything in a config that has keys.

    Raises:
        ValueError: it is too much.
    """
    left, count = [value], 0
    while left:
        each = left.pop()
        count += 1
        if count > MOST_ITEMS:
            raise ValueError(f"it holds more than {MOST_ITEMS:,} items")
        if isinstance(each, dict):
            yield each
            left += each.values()
        elif isinstance(each, list):
            left += each


class _Reader:
    """Reads one task with what it includes; `files` and `lacking` grow."""

    def __init__(self, function: Function | None) -> None:
        self._function, self._trusted = function, function is not None or is_trusted()
        self._seen: list[Path] = []
        self.files: list[Path] = []
        self.lacking: list[Path] = []

    def merged(self, path: Path) -> dict[str, Any]:
        """Read a file and put what it includes below it, as lm-eval does; each file's data is beside that file."""
        if path.resolve() in self._seen:
            raise InputError.at(path, "it includes itself, or is included twice", "remove an include", "bad-task")
        self._seen.append(path.resolve())
        config = self._parsed(path)
        try:
            for each in mappings(config):
                self._place(each, path)
        except ValueError as error:
            raise InputError.at(path, str(error), "is it the right file?", "bad-task") from error
        included, below = config.pop("include", []), dict[str, Any]()
        for name in included if isinstance(included, list) else [included]:
            if not isinstance(name, str):
                raise InputError.at(path, f"include is {show(name)}", "name a file, relative to this one", "bad-task")
            more = self.merged(path.parent / name)
            more.pop("task_list", None)
            below |= more
        return below | config

    def _parsed(self, path: Path) -> dict[str, Any]:
        import yaml

        def construct(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
            name = str(loader.construct_scalar(node))
            if not self._trusted:
                raise _refused(path, f"!function {name} runs Python code", node.start_mark)
            self.files += sorted(path.parent.glob("*.py"))
            return name if self._function is None else self._function(name, path.parent)

        loader: Any = type("Loader", (yaml.SafeLoader,), {})
        loader.add_constructor("!function", construct)
        self.files.append(path)
        text = read_text(path, "a task file", ANY_TEXT, largest=LARGEST_FILE)
        try:
            config = yaml.load(text, loader)
        except yaml.YAMLError as error:
            mark, words = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
            raise _error(path, " ".join(f"this is no YAML: {words}".split()), "mend it", mark) from error
        except (RecursionError, ValueError, OverflowError) as error:  # too deep, or a number or a date that is none
            raise _error(path, f"this is no YAML: {error}", "mend it", None) from error
        if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
            raise InputError.at(path, "it holds no keys of a task", 'write "task: mine" and the others', "bad-task")
        return config

    def _place(self, config: dict[str, Any], path: Path) -> None:
        """Make places of data absolute; note their files."""
        source, given = config.get("dataset_path"), config.get("dataset_kwargs")
        if isinstance(source, str) and source not in READERS:
            local = [place for place in (path.parent / source, Path(source)) if place.exists()]
            if (local or source in RUNNING) and not self._trusted:
                raise _refused(path, f'"dataset_path: {source}" may run code')
            if local and source not in RUNNING:
                config["dataset_path"] = str(local[0].absolute())
                self.files.append(local[0])
        if isinstance(given, dict):
            if given.get("trust_remote_code") and not self._trusted:
                raise _refused(path, '"trust_remote_code" runs code that data brings')
            for key in ("data_files", "data_dir"):
                if key in given:
                    given[key] = self._placed(given[key], path.parent)
        if config.get("hf_evaluate") and not self._trusted:
            raise _refused(path, '"hf_evaluate" runs code of the hub')

    def _placed(self, value: Any, folder: Path) -> Any:
        if isinstance(value, dict):
            return {key: self._placed(each, folder) for key, each in value.items()}
        if isinstance(value, list):
            return [place for each in value for place in _as_list(self._placed(each, folder))]
        if not isinstance(value, str) or "://" in value:
            return value
        here = str(folder / value)
        if not (found := sorted(glob(here)) or sorted(glob(value))):
            self.lacking.append(Path(here))
        places = [os.path.abspath(each) for each in found or [here]]
        self.files += map(Path, places)
        return places if len(places) > 1 else places[0]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _refused(path: Path, what: str, mark: Any = None) -> InputError:
    return _error(path, f"{what}, which a plan may not", f"run with {FLAG} if you trust it", mark, "task-code")


def _error(path: Path, message: str, hint: str, mark: Any, code: str = "bad-task") -> InputError:
    line, column = (0, 0) if mark is None else (mark.line + 1, mark.column + 1)
    return InputError(Diagnostic(code, message, hint, file=str(path), line=line, column=column))
