"""The page of results holds what the raw results give."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "results.md").read_text()
PAGES = [PAGE, (ROOT / "docs" / "storage.md").read_text()]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("tables")


def test_the_tables_are_those_of_the_raw_results(tables):
    for page in PAGES:
        assert tables.filled(page) == page, "run python benchmarks/tables.py"
    marked = [name for page in PAGES for name in re.findall(r"<!-- table: (\w+) -->", page)]
    assert sorted(marked) == sorted(tables.TABLES)


def test_a_changed_number_is_found(tables, tmp_path, monkeypatch):
    changed = tmp_path / "results.md"
    changed.write_text(re.sub(r"(\|\d\d)\.\d ± ", r"\1.99 ± ", PAGE, count=1))
    assert changed.read_text() != PAGE
    monkeypatch.setattr(tables, "PAGES", [changed])
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match=r"run python benchmarks/tables\.py"):
        tables.main()
    monkeypatch.setattr("sys.argv", ["tables.py"])
    tables.main()
    assert changed.read_text() == PAGE


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_a_raw_result_says_where_it_is_from(path):
    for number, text in enumerate(path.read_text().splitlines(), 1):
        line = json.loads(text)
        known = line.keys() >= {"command", "machine", "versions"} or "source" in line
        assert known, f"{path.name}, line {number}"


def test_the_page_names_every_file_of_raw_results():
    named = re.findall(r"`([\w*/-]+)`", PAGE.partition("|raw results|")[2])
    patterns = [name.removesuffix("/") for name in named]
    missing = [p.name for p in RESULTS.iterdir() if not any(p.match(f"{n}*") for n in patterns)]
    assert not missing


def test_a_benchmark_writes_lines_with_command_machine_and_versions(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    append_lines = importlib.import_module("_common").append_lines
    out = tmp_path / "lines.jsonl"
    monkeypatch.setattr("sys.argv", ["benchmarks/step.py", "--width", "8", "--out", str(out)])
    append_lines(str(out), [{"seconds": 1.5}], jaxopt="0.8.5")
    append_lines(None, [{"seconds": 1.5}])
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["command"] == "python benchmarks/step.py --width 8"
    assert line["machine"].startswith("cpu")
    assert line["versions"].keys() >= {"rcig-eqx", "jax", "jaxopt"}
    assert line["seconds"] == 1.5
