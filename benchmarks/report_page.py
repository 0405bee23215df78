"""How long the report of a run with many rollouts takes: to write, and to open in a browser.

    python benchmarks/report_page.py            # 10,000 rollouts, half a minute
    python benchmarks/report_page.py --quick    # 1,000 rollouts

A rollout has 120 words, two calculations, and the steps of student and teacher compared. The page is opened at a
rollout, in headless Chromium; the time ends when that rollout is shown. Exits with 1 if that takes two seconds or
more, and measures the writing only where playwright or Chromium is missing.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import harness
from rlkd.gsrm.alignment import Verdict
from rlkd.gsrm.factory import make
from rlkd.report.page import render_page
from rlkd.report.records import read_run
from rlkd.structure import Step, Structure

WORDS = ["apples", "trains", "he", "she", "buys", "sells", "runs", "costs", "per", "hour", "then", "because", "half"]
LIMIT_MS = 2000.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the report of a run with many rollouts.")
    count = 1_000 if harness.parse(parser, quick="1,000 rollouts").quick else 10_000
    with tempfile.TemporaryDirectory(prefix="rlkd-report-") as name:
        folder, page = Path(name), Path(name) / "report.html"
        write_run(folder, count)
        content, seconds, *_ = harness.timed(lambda: render_page([read_run(folder, most_rollouts=count)]))
        page.write_text(content, encoding="utf-8")
        opened = openings(page, at=count // 2)
    shown = round(median(opened)) if opened else None
    print(f"{count} rollouts: {len(content) / 1e6:.1f} MB, written in {seconds:.1f} s")
    print(f"a rollout is shown after {shown} ms (median of {len(opened)})" if opened else "no browser to open it in")
    figures = {"rollouts": count, "mb": round(len(content) / 1e6, 2), "write_s": round(seconds, 2), "shown_ms": shown}
    return harness.report(figures, {"shown_ms": shown is None or shown < LIMIT_MS})


def write_run(folder: Path, count: int) -> None:
    (folder / "rollouts").mkdir()
    with (folder / "rollouts" / "rank0.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in rollouts(count))
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, count // 8 + 1):
            file.write(
                json.dumps({"step": step, "reward": step % 7 / 7, "rewards/structure/mean": step % 5 / 5}) + "\n"
            )


def rollouts(count: int) -> Iterator[dict[str, Any]]:
    """Eight rollouts a step, four of each row."""
    draw, rule = random.Random(0), make("alignment", "teacher")
    for index in range(count):
        rolls, sold = draw.randrange(10, 99), draw.randrange(2, 9)
        teacher = Structure([Step("Count the rolls", f"4*{rolls}", str(4 * rolls)), Step("Take away", "9-3", "6")])
        student = Structure(
            [Step("Count the rolls", f"4*{rolls}", str(4 * rolls)), Step("Take away", "9-3", str(sold))]
        )
        verdicts = [[Verdict(True, True, True), Verdict(True, True, sold == 6)]]
        yield {
            "step": index // 8 + 1,
            "id": f"row-{index // 4}",
            "prompt": [{"role": "user", "content": f"Question {index // 4}: " + " ".join(draw.choices(WORDS, k=30))}],
            "completion": " ".join(draw.choices(WORDS, k=120))
            + f"\n4 * {rolls} = {4 * rolls}\n9 - 3 = {sold}\n#### {sold}",
            "answer": "6",
            "rewards": {
                "accuracy": {"status": "score", "value": float(sold == 6)},
                "structure": {
                    "status": "score",
                    "value": 0.5,
                    "detail": rule.score(student, teacher, verdicts, 2).to_dict(),
                },
            },
            "advantage": draw.gauss(0, 1),
        }


def openings(page: Path, at: int) -> list[float]:
    """Milliseconds until a rollout is shown, of five openings; none without a browser."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        return []
    found = []
    with sync_playwright() as playwright:
        for _ in range(5):
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
            browser = playwright.chromium.launch(executable_path=path, args=flags)
            opened = browser.new_page(viewport={"width": 1366, "height": 800})
            opened.goto(f"file://{page}#rollout-{at}")
            opened.locator("article.detail h2").wait_for()
            found.append(opened.evaluate("performance.now()"))
            browser.close()
    return found


if __name__ == "__main__":
    raise SystemExit(main())
