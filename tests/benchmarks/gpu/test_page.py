import json

import pytest

from gpu import page

KD = {"traces_step_s": 0.5, "rollouts_step_s": 7.25, "peak_gb": 9.1, "estimated_gb": 8.8}
ARM = {"ms": 41.0, "peak_mib": 300, "gradient_error": 0.0021}
GAP = {"loss": 0.1, "our_loss": 0.1, "parameter_gap": 2e-6, "stock_gap": 0.0}
DIFFERENCE = {"value": 0.012, "low": -0.004, "high": None, "n": 9}
RESULTS = {
    "gpu": "NVIDIA Test",
    "date": "2026-12-01",
    "versions": {"torch": "2.13.0"},
    "total_s": 401.2,
    "parts": {
        "device": {"status": "ok", "memory_gb": 24.0},
        "rlkd_0.5b": {"status": "ok", "step_s": 8.1, "tokens_per_s": 1011.0, "peak_gb": 4.2, "estimated_gb": 4.0},
        "kd": {"status": "failed", "error": "not finished after 110 s", "chunked": KD},
        "divergence": {
            "status": "ok",
            "tokens": 8192,
            "vocabulary": 151936,
            "dtype": "bfloat16",
            "head_frozen": {"ours": ARM, "dense": {"failed": "out of memory"}},
        },
        "equality": {"status": "ok", "rlkd": GAP},
        "lab": {
            "status": "ok",
            "study": "rlkd-lab-seeds",
            "runs": 18,
            "at_once": 12,
            "runs_per_minute": 6.0,
            "comparisons": [{"arm": "ordered", "base": "accuracy", "difference": DIFFERENCE}],
        },
    },
}


def test_the_page_says_what_is_recorded() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.split(page.BEGIN)[1].split(page.END)[0].strip() == page.render(page.read_recorded())


def test_without_results_nothing_was_seen() -> None:
    text = page.render([])
    assert "Nothing in this project has been run on a GPU" in text
    assert "yes: " not in text


def test_results_become_tables_and_failures_are_named() -> None:
    text = page.render([RESULTS])
    assert "**Run on: NVIDIA Test, 2026-12-01.** Parts that failed: kd." in text
    assert "| LoRA | runs (`rlkd_smollm2.yaml`) | yes: rlkd_0.5b |" in text
    assert "| yes: divergence; failed: kd |" in text
    assert "| rlkd_0.5b | - | 8.1 | 1011.0 | - | 4.2 | 4.0 |" in text
    assert "| rlkd's divergence | 0.5 | 7.25 | 9.1 | 8.8 |" in text
    assert "| rlkd | frozen | 41.0 | 300 | 2.1e-03 |" in text
    assert "| dense | frozen | - | - | out of memory |" in text
    assert "`ordered` against `accuracy`: +1.2 points (-0.4 to +inf)." in text
    assert "`kd` failed: not finished after 110 s" in text


def test_figures_of_a_cpu_are_refused(tmp_path) -> None:
    (tmp_path / "here.json").write_text(json.dumps({"gpu": None, "smoke": True, "parts": {}}))
    with pytest.raises(SystemExit, match="is of no GPU"):
        page.read_recorded(tmp_path)
