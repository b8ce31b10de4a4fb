"""How failures of the system are told."""

import pytest

from flashmoe.errors import reason


def test_a_failure_is_told_without_numbers_paths_and_codecs(tmp_path):
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "none").read_text()
    with pytest.raises(UnicodeDecodeError) as garbled:
        (tmp_path / "text").read_text(encoding="utf-8")
    assert reason(missing.value) == "No such file or directory"
    assert reason(garbled.value) == "it is not UTF-8"


def test_what_has_words_of_its_own_keeps_them():
    assert reason(ValueError("it is larger than 5 bytes")) == "it is larger than 5 bytes"
    assert reason(OSError("gone")) == "gone"
