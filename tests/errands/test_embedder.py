"""Errand: an embedder in a file outside the repository, named in YAML, builds a path bank and selects by cosine."""

import json
from pathlib import Path

import pytest

from tests.helpers.scripted_teacher import ScriptedTeacher
from tests.helpers.scripts import run_here

EMBEDDER = '''
import numpy as np


class LetterCounts:
    """Texts by how often each letter occurs."""

    name = "letter-counts-1"

    def embed(self, texts):
        vectors = np.array([[1 + text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], dtype=float)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
'''

CONFIG = """
dataset_name: rows.jsonl
teacher: {teacher}
writers: [bank]
candidates: 2
seed_share: 0.3
wave: 6
embedder: letters.py:LetterCounts
selectors: [correct, diverse]
selector_kwargs: {{diverse: {{measure: cosine, threshold: 1.0, embedder: "letters.py:LetterCounts"}}}}
output_dir: out
"""


@pytest.mark.slow
def test_an_embedder_from_a_file_makes_the_bank_and_compares_rationales(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} and {2 * n} together?", "answer": str(3 * n)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "letters.py").write_text(EMBEDDER)
    teacher = ScriptedTeacher()
    (tmp_path / "rationales.yaml").write_text(CONFIG.format(teacher=teacher.spec))
    try:
        run = run_here("recipes/rationales.py", ["--config", "rationales.yaml"], tmp_path)
    finally:
        teacher.shut_down()
    assert run.returncode == 0, run.stderr
    bank = json.loads((tmp_path / "out/bank.json").read_text())
    assert bank["rules"]["embedder"] == "letter-counts-1"
    assert bank["bank"]["addition"]
    written = json.loads((tmp_path / "out/summary.json").read_text())["write"]
    assert written["paths"]["offered_share"] > 0.5
    kept = [json.loads(line) for line in (tmp_path / "out/rationales.jsonl").open()]
    assert len(kept) > 10
    assert all("nearest" in scores for row in kept for scores in row["scores"])
