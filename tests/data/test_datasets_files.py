"""Data sets of the package `datasets` that are on this machine."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.lower import lower
from sprunec.errors import InputError
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.small_plans import TRAIN, plan, write
from tests.passes.test_read_data import end_tokenizer, ids_of, parts

TEXTS = ["first one", "", "second\none", "third", "a fourth one"]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return package


def read(folder: Path, path: str, **data: Any) -> tuple[list[int], list[int]]:
    """What a plan's data pass makes of a data set, both parts."""
    return parts(folder, "datasets", **{"path": path, "held_out": 0.4} | data)


@pytest.mark.parametrize("splits", [False, True])
def test_what_save_to_disk_has_written_is_read(splits: bool, datasets: Any, tmp_path: Path) -> None:
    end_tokenizer(tmp_path)
    one = datasets.Dataset.from_dict({"text": TEXTS, "number": list(range(5))})
    (datasets.DatasetDict({"train": one, "test": one.select([3])}) if splits else one).save_to_disk(tmp_path / "saved")
    train, held_out = read(tmp_path, "saved")
    assert train == ids_of("first one", "second\none", "thi") and held_out == ids_of("rd", "a fourth one")
    if splits:
        assert read(tmp_path, "saved", held_out="test")[1] == ids_of("third")
        with pytest.raises(InputError, match="the data set saved dev cannot be read: its splits are train, test"):
            read(tmp_path, "saved", split="dev")


@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
def test_a_directory_of_data_files_is_read(kind: str, datasets: Any, tmp_path: Path) -> None:
    end_tokenizer(tmp_path)
    (tmp_path / "files").mkdir()
    rows = datasets.Dataset.from_dict({"said": [text for text in TEXTS if text]})
    getattr(rows, f"to_{kind}")(tmp_path / f"files/train.{kind}")
    train, held_out = read(tmp_path, "files", column="said")
    assert train == ids_of("first one", "second\none", "thi") and held_out == ids_of("rd", "a fourth one")


def test_a_name_in_the_package_s_cache_is_read(datasets: Any, tmp_path: Path) -> None:
    end_tokenizer(tmp_path)
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    rows.save_to_disk(tmp_path / "saved")
    home = tmp_path / f"cache/org___name/default/0.0.0/{'0' * 40}"
    home.mkdir(parents=True)
    shutil.copy(tmp_path / "saved/data-00000-of-00001.arrow", home / "name-train.arrow")
    split = datasets.SplitInfo("train", num_bytes=10, num_examples=len(TEXTS), dataset_name="name")
    known = {"builder_name": "parquet", "dataset_name": "name", "config_name": "default", "version": "0.0.0"}
    splits = datasets.SplitDict({"train": split}, dataset_name="name")
    datasets.DatasetInfo(features=rows.features, splits=splits, **known).write_to_directory(str(home))
    assert read(tmp_path, "org/name") == read(tmp_path, "saved")


def test_a_name_is_looked_for_in_the_cache_and_nowhere_else(datasets: Any, tmp_path: Path) -> None:
    end_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"/data/path: error: the data set org/name train cannot be read"):
        read(tmp_path, "org/name")


def test_a_column_that_has_no_text_is_told(datasets: Any, tmp_path: Path) -> None:
    end_tokenizer(tmp_path)
    datasets.Dataset.from_dict({"text": TEXTS, "number": list(range(5))}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match='has no column said; its columns are text, number: name one by "column"'):
        read(tmp_path, "saved", column="said")
    with pytest.raises(InputError, match="its column number has int in row 0 and no text"):
        read(tmp_path, "saved", column="number")


def test_a_script_beside_the_data_is_not_run(datasets: Any, tmp_path: Path) -> None:
    end_tokenizer(tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/files.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "files/train.jsonl").write_text(json.dumps({"text": "first one"}) + "\n")
    with suppress(InputError):
        read(tmp_path, "files")
    assert not (tmp_path / "ran").exists()


def test_a_data_set_counts_by_its_content(datasets: Any, tmp_path: Path) -> None:
    end_tokenizer(tmp_path)

    def digest(name: str, texts: list[str], **data: Any) -> str | None:
        datasets.Dataset.from_dict({"text": texts, "other": texts}).save_to_disk(tmp_path / name)
        content = plan(TRAIN)
        content["data"] |= {"source": "datasets", "path": name, "tokenizer": "tokenizer.json"} | data
        return next(node.digest for node in lower(read_plan(write(tmp_path, content))).nodes if node.pass_ == "data")

    one = digest("a", TEXTS)
    assert digest("b", TEXTS) == one
    assert len({one, digest("c", TEXTS[1:]), digest("d", TEXTS, column="other")}) == 3


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("sprunec.plan.checks.find_spec", lambda package: None)
    content = plan(TRAIN)
    content["data"] |= {"source": "datasets", "path": "org/name", "tokenizer": "tokenizer.json"}
    found = check_plan(write(tmp_path, content))[1]
    assert [f"{each.message}; {each.hint}" for each in found] == [
        "source \"datasets\" needs the package datasets; pip install 'sprunec[datasets]'"
    ]
    with pytest.raises(InputError, match=r"needs the package datasets; pip install 'sprunec\[datasets\]'"):
        lower(read_plan(tmp_path / "plan.json"))
