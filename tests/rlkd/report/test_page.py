"""The page itself, and what it does in a browser where Debian's Chromium (or Chrome) and playwright are there."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from rlkd.report.page import render_page
from rlkd.report.records import read_run
from tests.helpers.run_folder import compared_structures, evaluation, metrics, rollout, weighted_trace, write_run

HOSTILE = """</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">&lt;b&gt; "' \ud800"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def page_of(*folders: Path) -> str:
    return render_page([read_run(folder, most_rollouts=50_000) for folder in folders])


def hostile_run(folder: Path) -> Path:
    """A run whose every text is hostile."""
    structures = compared_structures()
    structures["student"][0]["meta"] = HOSTILE
    record = rollout(
        1,
        0,
        id=HOSTILE,
        completion=HOSTILE,
        answer=HOSTILE,
        prompt=[{"role": HOSTILE, "content": HOSTILE}, {"role": "user", "content": HOSTILE}],
        rewards={
            HOSTILE: {"status": "failed", "cause": HOSTILE},
            "structure": {"status": "score", "value": 0.5, "detail": structures},
            "own": {"status": "score", "value": 1.0, "detail": {HOSTILE: HOSTILE}},
        },
    )
    log = [metrics(1, **{HOSTILE: 1.0, f"rewards/{HOSTILE.replace('/', '')}/mean": 1.0})]
    return write_run(folder, log=log, rollouts=[record, rollout(1, 1)])


def test_text_of_a_model_is_in_the_page_as_base64_only(tmp_path):
    page = page_of(hostile_run(tmp_path / "<img src=x onerror=alert(1)>"))
    assert "window.hacked" not in page
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 5
    block = re.search(r'id="data-details">([^<]*)<', page)
    assert block
    details = json.loads(gzip.decompress(base64.b64decode(block[1])))
    assert details[0]["rewards"][HOSTILE.replace("\ud800", "?")]["cause"].startswith("</script>")


def test_nothing_is_named_that_a_browser_would_fetch(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    outside_blocks = re.sub(r'<script type="text/plain"[^>]*>[^<]*', "", page)
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(|fetch\(|XMLHttpRequest", outside_blocks)
    assert "default-src 'none'" in page.replace("&#39;", "'")


@pytest.fixture(scope="module")
def chromium():
    """A headless browser; closed with this module, as playwright's event loop would be in the way of others."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, tmp_path):
    """Opens the report of runs; fails for an error on the page and for any request but that for the file itself."""
    context = chromium.new_context(viewport={"width": 1366, "height": 800}, offline=True)
    problems: list[str] = []

    def opened(*folders: Path, at: str = ""):
        file = tmp_path / "report.html"
        file.write_text(page_of(*folders), encoding="utf-8")
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: request.url == page.url or problems.append(request.url))
        page.goto(f"file://{file}{at}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield opened
    context.close()
    assert [problem for problem in problems if not problem.startswith(("file://", "blob:", "data:"))] == []


@pytest.mark.slow
def test_charts_are_drawn_as_they_come_into_view(open_page, tmp_path):
    page = open_page(write_run(tmp_path / "run"))
    page.wait_for_selector(".plot .main-svg")
    last = page.locator("figure").last
    assert last.locator(".main-svg").count() == 0
    page.get_by_text("Other metrics").click()
    last.scroll_into_view_if_needed()
    last.locator(".main-svg").first.wait_for()
    label = page.locator(".plot").first.get_attribute("aria-label")
    assert label == "Chart: Held-out accuracy. greedy from 33.3% at 0 to 66.7% at 10."
    page.locator("figure summary").first.click()
    assert page.locator("figure .values tbody tr").first.inner_text().split("\t")[:3] == ["greedy", "0", "33.3%"]
    buttons = page.locator(".plot").first.locator(".modebar-btn")
    titles = buttons.evaluate_all("buttons => buttons.map((button) => button.dataset.title)")
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]  # none sends the data somewhere
    page.locator(".plot").first.hover()
    with page.expect_download() as download:
        buttons.first.click()
    assert download.value.suggested_filename.endswith(".png")
    page.get_by_role("button", name="Theme").click(click_count=2)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.slow
def test_rollouts_are_filtered_sorted_and_searched(open_page, tmp_path):
    page = open_page(write_run(tmp_path / "run"), at="#rollouts")
    count, rows = page.locator(".filters [role=status]"), page.locator(".rows .row")
    assert count.inner_text() == "40 of 40"
    page.get_by_label("Search text").fill("question 7?")
    assert count.inner_text() == "4 of 40"
    page.get_by_role("button", name="Reset").click()
    page.locator(".filters").get_by_text("40 of 40").wait_for()
    page.get_by_label("From step").fill("4")
    page.get_by_label("To step").fill("5")
    page.get_by_label("At least").fill("1")  # of the first number, the accuracy
    assert count.inner_text() == "4 of 40"
    page.get_by_label("wrong arithmetic").check()
    assert count.inner_text() == "0 of 40"
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Row id contains").fill("row-1")
    assert count.inner_text() == "8 of 40"
    page.get_by_label("Status of rewards").select_option("accuracy: failed")
    assert count.inner_text() == "0 of 40"
    page.get_by_label("Status of rewards").select_option("any status")
    page.get_by_role("button", name="advantage").click()
    assert rows.first.inner_text().split("\n")[:5] == ["1", "row-1", "1", "0.5", "+0.50"]
    assert page.get_by_role("columnheader", name="advantage").get_attribute("aria-sort") == "descending"
    rows.first.click()
    page.get_by_role("rowgroup", name="Rollouts").press("ArrowDown")
    page.wait_for_url("**/report.html#rollout-4")


@pytest.mark.slow
def test_a_rollout_is_shown_with_its_steps_side_by_side(open_page, tmp_path):
    page = open_page(write_run(tmp_path / "run"), at="#rollout-5")
    detail = page.locator("article.detail")
    detail.get_by_text("Steps compared").wait_for()
    text = detail.inner_text()
    assert "step 2 · row-2" in text
    assert "Question 2?" in text
    assert "alignment teacher: 1 / 2 = 0.5 (steps of the longest branch)" in text
    detail.get_by_text("Whole prompt").click()
    assert detail.locator("details .text").all_inner_texts() == ["Be brief.", "Question 2?"]
    cells = detail.locator("table.steps tbody tr").nth(1).locator("td").all_inner_texts()
    assert cells == [
        "2",
        "Take away\n48-30 = 17 ✗ (is 18)",
        "Share them\n18/3 = 6",
        "✗ meta\n✗ question\n✗ answer",
        "0",
    ]
    assert detail.locator(".group button").all_inner_texts() == ["-0.50", "+0.50", "-0.50", "+0.50"]
    detail.locator(".group button").nth(1).click()
    page.wait_for_url("**/report.html#rollout-6")


@pytest.mark.slow
def test_a_trace_of_distillation_is_shown_with_its_weights(open_page, tmp_path):
    page = open_page(write_run(tmp_path / "run", rollouts=[weighted_trace(1, [0.4, 1.0, 1.8])]), at="#rollout-1")
    marks = page.locator(".completion mark")
    marks.first.wait_for()
    assert marks.evaluate_all("marks => marks.map((mark) => [mark.className, mark.title, mark.textContent])") == [
        ["less", "weight 0.4", "0 + 1 = 1"],
        ["more", "weight 1", "1 + 1 = 2"],
        ["more", "weight 1.8", "2 + 1 = 3"],
    ]
    assert "teacher's validity" in page.locator("article.detail").inner_text()


@pytest.mark.slow
def test_hostile_text_is_shown_and_not_run(open_page, tmp_path):
    shown = HOSTILE.replace("\ud800", "?")
    page = open_page(hostile_run(tmp_path / "<img src=x onerror=alert(1)>"), at="#rollout-1")
    page.locator("article.detail h3").first.wait_for()
    assert page.locator(".completion").inner_text() == shown
    assert page.title() == "<img src=x onerror=alert(1)> - rlkd report"
    page.get_by_role("tab", name="Curves").click()
    page.wait_for_selector(".plot .main-svg")
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.locator("figure").last.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, iframe, object").count() == 0
    assert page.evaluate("document.scripts.length") == 2  # the page's and plotly; the data are unpacked


@pytest.mark.slow
def test_of_ten_thousand_rollouts_only_those_in_view_are_elements(open_page, tmp_path):
    records = [rollout(step, index) for step in range(1, 1251) for index in range(8)]
    page = open_page(write_run(tmp_path / "run", rollouts=records), at="#rollout-10000")
    page.locator("article.detail h3").first.wait_for()
    assert page.locator(".filters [role=status]").inner_text() == "10,000 of 10,000"
    assert page.locator(".rows .row").count() < 100
    assert page.locator(".rows .row[aria-selected=true]").inner_text().startswith("1250")
    page.get_by_label("Search text").fill("question 1234?")
    assert page.locator(".filters [role=status]").inner_text() == "8 of 10,000"


@pytest.mark.slow
def test_two_runs_are_overlaid_and_their_rollouts_told_apart(open_page, tmp_path):
    other = write_run(tmp_path / "other", evaluations=[evaluation(10, [0.0, 0.0, 0.0])])
    page = open_page(write_run(tmp_path / "run"), other)
    assert "run minus other: greedy accuracy, step 10 minus step 10" in page.locator(".cards").inner_text()
    page.wait_for_selector(".plot .legendtext")
    assert {"greedy, run", "greedy, other"} <= set(page.locator(".plot .legendtext").all_text_contents())
    page.get_by_role("tab", name="Rollouts").click()
    page.get_by_label("Run or policy").select_option("run: other")
    assert page.locator(".filters [role=status]").inner_text() == "40 of 80"
    assert page.locator(".rows .row").first.inner_text().startswith("other")


@pytest.mark.slow
def test_a_run_without_rollouts_says_so(open_page, tmp_path):
    page = open_page(write_run(tmp_path / "run", rollouts=[]), at="#rollouts")
    assert page.locator("article.detail").inner_text() == "The run recorded no rollouts."
