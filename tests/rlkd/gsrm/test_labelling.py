import pytest

from rlkd.engines.base import EngineError
from rlkd.gsrm import ReasoningTrace
from rlkd.gsrm.labelling import fault, label
from rlkd.structure import Step, Structure, render

GOOD = Structure([Step("How many in May?", "48/2", "24"), Step("How many in all?", "48+24", "72")])
TRACE = "In May she sold 48/2 = 24 clips. In all she sold 48+24 = 72 clips.\n#### 72"


def row(name: str, text: str = TRACE, **more):
    return {"id": name, "question": f"{name}: 48 in April, half in May?", "answer": "72", "rationales": [text], **more}


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (GOOD, None),
        (Structure(), "no steps"),
        (Structure([Step("Why?", "48+24", "73")]), "the number 73 is not in the trace"),
        (Structure([Step("Why?", "48+25", "72")]), "the number 25 is not in the trace"),
        (Structure([Step(None, "48+24", "72")]), "a step without a sub-question"),
        (Structure([Step("How many in May?", "48/2", "24")]), "the last result is 24, the answer of the trace is 72"),
    ],
)
def test_a_label_must_report_its_trace(structure, reason) -> None:
    assert fault(ReasoningTrace("48 in April?", TRACE), structure) == reason


def test_a_wrong_trace_is_reported_as_it_is() -> None:
    wrong = ReasoningTrace("48 in April?", "In May 48/2 = 20. In all 48+20 = 68.\n#### 68")
    assert fault(wrong, Structure([Step("May?", "48/2", "20"), Step("All?", "48+20", "68")])) is None


def test_rows_get_structures_and_rejected_ones_are_retried_then_counted(scripted, tmp_path) -> None:
    def write(text, call):
        if "bad" in text:
            return render(Structure([Step("Why?", "1", "99")]))
        if "late" in text:
            return render(GOOD) if call == 2 else "no idea"
        return render(GOOD)

    engine = scripted(write=write)
    rows = [row("a"), row("bad"), row("late"), row("known", structures=[GOOD.to_list()]), row("none", rationales=[])]
    labelled, left_out = label(rows, engine, store=tmp_path / "labels.sqlite")
    assert [r["id"] for r in labelled] == ["a", "late", "known"]
    assert labelled[0]["structures"] == [GOOD.to_list()]
    assert left_out == {"the number ... is not in the trace": 1, "no rationale": 1}
    assert [len(asked) for asked in engine.generated] == [3, 2]


def test_an_interrupted_labelling_sends_only_the_rest(scripted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("rlkd.gsrm.labelling.BATCH", 2)
    rows = [row(str(i)) for i in range(6)]

    class Killed(BaseException):
        pass

    def dies(text, call):
        if call == 3:
            raise Killed
        return render(GOOD)

    with pytest.raises(Killed):
        label(rows, scripted(write=dies), store=tmp_path / "labels.sqlite")
    engine = scripted(write=lambda text, call: render(GOOD))
    labelled, left_out = label(rows, engine, store=tmp_path / "labels.sqlite")
    assert len(labelled) == 6
    assert not left_out
    assert sum(map(len, engine.generated)) == 2


def test_a_server_that_is_down_is_a_reason_and_nothing_is_stored(scripted, tmp_path) -> None:
    down = scripted(write=lambda text, call: EngineError("scripted", "it is down."))
    labelled, left_out = label([row("a")], down, store=tmp_path / "labels.sqlite")
    assert (labelled, dict(left_out)) == ([], {"scripted: it is down.": 1})
    engine = scripted(write=lambda text, call: render(GOOD))
    assert len(label([row("a")], engine, store=tmp_path / "labels.sqlite")[0]) == 1


def test_the_domain_of_a_row_decides_on_the_examples(scripted, tmp_path) -> None:
    engine = scripted(write=lambda text, call: render(GOOD))
    rows = [row("a"), row("b", domain="Code"), row("c", domain="biology"), row("d", domain="math")]
    labelled, left_out = label(rows, engine, store=tmp_path / "labels.sqlite")
    assert [each["id"] for each in labelled] == ["a", "b", "c", "d"]
    assert not left_out
    examples = {
        prompt[-1]["content"].split()[1][0]: prompt[1]["content"] for call in engine.prompts for prompt in call
    }
    words = {"a": "cinema", "b": "neighbours", "c": "dropped", "d": "cinema"}
    assert {name for name, word in words.items() if word in examples[name]} == set(words)
