"""A folder in which a test starts `rlkd serve`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.serving import Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    yield place
    place.close()
