"""Writing with a scripted engine."""

from typing import Any

import pytest

from rlkd.embedders import open_embedder
from rlkd.rationales.records import Question
from rlkd.rationales.write.journal import Journal
from rlkd.rationales.write.teacher import RationaleTeacher
from rlkd.rationales.write.writer import Writer
from rlkd.rationales.write.writing import Writing
from tests.helpers.scripted_writing import Scripted


@pytest.fixture
def written(tmp_path):
    """Write with a scripted engine; the writer, its questions and what was discarded."""

    def write(engine: Scripted, wanted: list[Question], settings: Writing, name: str = "journal", **more: Any):
        with Journal(tmp_path / name) as journal:
            embedder = open_embedder("hashed-ngrams") if "bank" in settings.writers else None
            # As a rule every question is near enough: calibration is the bank's business.
            more = {"route_threshold": 0.05, **more}
            teacher = RationaleTeacher(engine, journal, batch=4, max_failure_rate=more.pop("max_failure_rate", 0.1))
            writer = Writer(settings, teacher, embedder=embedder, **more)
            found = list(writer.write(wanted))
        return writer, [each for each, _ in found], [item for _, discarded in found for item in discarded]

    return write
