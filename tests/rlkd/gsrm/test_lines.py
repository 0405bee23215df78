from hypothesis import given
from hypothesis import strategies as st

from rlkd.data.samples import sample_rows
from rlkd.gsrm.lines import parse_lines, render_lines
from rlkd.structure import Step, Structure

FIELD = st.one_of(st.none(), st.text(alphabet="ab 1|\\\n\t=é", max_size=8))


def squeezed(structure: Structure) -> list[tuple[str | None, ...]]:
    def words(text):
        return " ".join(text.split()) if text else None

    return [tuple(words(field) for field in (s.meta, s.question, s.answer)) for s in structure]


@given(
    st.lists(st.tuples(FIELD, FIELD, FIELD).filter(lambda fields: any(f and f.strip() for f in fields)), max_size=4)
)
def test_lines_give_back_the_structure_but_for_its_white_space(fields) -> None:
    structure = Structure(Step(*f) for f in fields)
    assert squeezed(parse_lines(render_lines(structure))) == squeezed(structure)


def test_all_structures_of_the_sample_survive_the_way_to_lines_and_back() -> None:
    for row in sample_rows("rl"):
        structure = Structure.from_list(row["structures"][0])
        assert squeezed(parse_lines(render_lines(structure))) == squeezed(structure)


@given(st.text())
def test_reading_lines_never_raises(text) -> None:
    parse_lines(text)
    parse_lines(text, complete=False)


def test_a_line_that_is_no_step_is_left_out() -> None:
    text = "Sure, here are the steps:\nHow many? | 1+1 | 2\n |  | \nHow far? | 2*3\n\nWhen? | | noon"
    assert parse_lines(text) == Structure([Step("How many?", "1+1", "2"), Step("When?", None, "noon")])


def test_the_last_line_of_a_truncated_text_does_not_count() -> None:
    text = "How many? | 1+1 | 2\nHow much? | 70+2 | 7"
    assert len(parse_lines(text)) == 2
    assert parse_lines(text, complete=False) == Structure([Step("How many?", "1+1", "2")])
