"""Result files are written while the images come, and in order at the end."""

import json
from concurrent.futures import ThreadPoolExecutor

from maskdino_jax.evaluation.result_file import ResultFile


def test_images_come_in_any_order_and_from_threads(tmp_path):
    file = ResultFile(tmp_path / "results.json")
    entries = {number: [{"image": number, "place": place} for place in range(number % 4)] for number in range(50)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: file.add(number, entries[number]), reversed(range(50))))
    assert not (tmp_path / "results.json").exists(), "not before it is complete"
    file.close()
    assert json.loads((tmp_path / "results.json").read_text()) == [x for number in range(50) for x in entries[number]]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"], "nothing else is left"


def test_nothing_found_is_an_empty_list(tmp_path):
    file = ResultFile(tmp_path / "results.json")
    file.add(0, [])
    file.close()
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_what_goes_around_the_list(tmp_path):
    file = ResultFile(tmp_path / "results.json", '{"annotations": [', '], "rest": 1}')
    file.add(1, [{"b": 2}])
    file.add(0, [{"a": 1}])
    file.close()
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == {"annotations": [{"a": 1}, {"b": 2}], "rest": 1}


def test_entries_do_not_stay_in_memory(tmp_path):
    """They are on disk, but for what the file system is about to write."""
    file = ResultFile(tmp_path / "results.json")
    for number in range(100):
        file.add(number, [{"counts": "x" * 10_000}])
    assert (tmp_path / "results.unsorted0").stat().st_size > 900_000
    file.close()
