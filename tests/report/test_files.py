import json
import os

import pytest

from simulator.errors import InputError
from simulator.report.files import write_atomically, write_json


def test_content_is_written_and_nothing_else_is_left(tmp_path):
    write_atomically(tmp_path / "a.txt", "grün\n")
    write_atomically(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_json_document_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"name": "grün"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "grün"}
    assert text.endswith("}\n")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "x"


def test_a_device_is_written_to_and_not_replaced():
    write_atomically("/dev/null", "x")
    assert not os.path.isfile("/dev/null")


def test_a_missing_folder_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*; create it first"):
        write_atomically(tmp_path / "no" / "a.txt", "x")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        write_atomically(tmp_path, "x")


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(permission denied\); choose another folder"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
