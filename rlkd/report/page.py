"""The report of a run as one HTML file that opens without a network.

What a model wrote goes into the page compressed and as base64, and from there into text nodes: it is never read as
HTML. A content security policy allows the scripts of the page by their hashes and nothing else, so that the page
fetches nothing and runs nothing that is in its data.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment

import rlkd
from rlkd.errors import UsageError
from rlkd.report.charts import charts_of
from rlkd.report.records import RunRecords
from rlkd.report.rollouts import rollout_details, rollout_table
from rlkd.report.summary import summary_of

_SCRIPTS = ("base.js", "run.js", "charts.js", "rollouts.js", "detail.js", "start.js")


def render_page(runs: Sequence[RunRecords]) -> str:
    """The page of one run, or of two that are compared. Raises `UsageError` where plotly is not installed."""
    charts = _plotly()
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    data = {
        "summary": {**summary_of(runs), "charts": [chart.to_dict() for chart in charts_of(runs)]},
        "table": rollout_table(runs),
        "details": rollout_details(runs),
    }
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("page.html"))
    return template.render(
        title=" and ".join(run.name for run in runs),
        version=rlkd.__version__,
        style=_asset("page.css"),
        script=script,
        hashes=[_hash(script), _hash(charts)],
        blocks={name: _packed(_compact(value)) for name, value in data.items()} | {"charts": _packed(charts)},
    )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UsageError('the charts need plotly, which is not installed. Run  pip install "rlkd[report]"') from error
    return str(get_plotlyjs())


def _asset(name: str) -> str:
    return files("rlkd.report").joinpath("page", name).read_text(encoding="utf-8")


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _packed(text: str) -> str:
    """A text, compressed; the same for the same text. Lone surrogates of a model's text become question marks."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), compresslevel=6, mtime=0)).decode()


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
