import json
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.structure import (
    FIELDS,
    JSON_SCHEMA,
    Parsed,
    Step,
    Structure,
    from_gsm8k_socratic,
    from_step_keyed,
    parse,
    render,
)

NATALIA = Structure(
    [
        Step("How many clips did Natalia sell in May?", "48/2", "24"),
        Step("How many clips did Natalia sell altogether?", "48+24", "72"),
    ]
)
NATALIA_TEXT = """\
<step>
<meta>How many clips did Natalia sell in May?</meta>
<question>48/2</question>
<answer>24</answer>
</step>
<step>
<meta>How many clips did Natalia sell altogether?</meta>
<question>48+24</question>
<answer>72</answer>
</step>"""

# Text of every kind, lone surrogates included, with pieces that look like our tags and escapes.
PIECES = [
    "<step>",
    "</step>",
    "< Meta >",
    "</answer>",
    "<question",
    "answer>",
    "&lt;",
    "&amp;",
    "&",
    "<",
    "</",
    "amp;",
    "\\",
]
ANY_TEXT = st.text(st.characters(exclude_categories=()))
TRICKY_TEXT = st.lists(st.one_of(st.sampled_from(PIECES), ANY_TEXT), max_size=6).map("".join)
FIELD = st.none() | ANY_TEXT | TRICKY_TEXT
STEPS = (
    st.tuples(FIELD, FIELD, FIELD).filter(lambda fields: any(f and f.strip() for f in fields)).map(lambda f: Step(*f))
)
STRUCTURES = st.lists(STEPS, max_size=4).map(Structure)


def reasons(text):
    return [dropped.reason for dropped in parse(text).dropped]


def is_prefix(part, whole):
    return part.steps == whole.steps[: len(part)]


class TestStep:
    def test_text_is_stripped_and_empty_text_becomes_none(self):
        assert Step(" why \n", "", "\t") == Step("why")

    def test_numbers_become_text(self):
        assert Step(None, 7, 0.5) == Step(None, "7", "0.5")
        assert Step(answer=Fraction(3, 4)).answer == "3/4"

    @pytest.mark.parametrize(("field", "value"), [("meta", True), ("question", ["48/2"]), ("answer", {"a": 1})])
    def test_other_types_are_refused_with_field_and_value(self, field, value):
        with pytest.raises(TypeError, match=field) as caught:
            Step(**{field: value})
        assert repr(value) in str(caught.value)

    def test_a_step_without_any_field_is_refused(self):
        with pytest.raises(ValueError, match="at least one of meta, question and answer"):
            Step(" ", None, "")

    def test_a_step_cannot_be_changed(self):
        with pytest.raises(AttributeError):
            NATALIA[0].answer = "25"


class TestStructure:
    def test_it_is_a_sequence_of_its_steps(self):
        first, second = NATALIA
        assert (len(NATALIA), NATALIA[0], NATALIA[-1]) == (2, first, second)
        assert Structure(iter([first, second])) == NATALIA
        assert hash(Structure([first, second])) == hash(NATALIA)

    def test_it_may_have_no_steps(self):
        assert (len(Structure()), render(Structure()), Structure().to_list()) == (0, "", [])

    def test_it_refuses_objects_that_are_no_steps(self):
        with pytest.raises(TypeError, match=r"step 1: expected a Step, got \{'meta': 'a'\}"):
            Structure([Step("a"), {"meta": "a"}])

    def test_it_shows_itself_in_the_text_schema(self):
        assert str(NATALIA) == render(NATALIA) == NATALIA_TEXT

    @given(STRUCTURES)
    def test_lists_of_dicts_give_it_back(self, structure):
        assert Structure.from_list(structure.to_list()) == structure
        without_none = [{k: v for k, v in step.items() if v is not None} for step in structure.to_list()]
        assert Structure.from_list(without_none) == structure
        assert Structure.from_list(list(structure)) == structure

    @pytest.mark.parametrize(
        ("items", "error", "message"),
        [
            ([{"meta": "a"}, {"meta": True}], TypeError, r"step 1: meta must be text, .* got True \(bool\)"),
            ([{"meta": "a"}, {"meat": "b"}], ValueError, "step 1: unknown key 'meat' with the value 'b'"),
            ([{"meta": None, "question": ""}], ValueError, "step 0: a step needs at least one of"),
            (["a"], TypeError, r"step 0: expected a dict .* got 'a' \(str\)"),
            ("abc", TypeError, "read from a list of steps, got 'abc'"),
            ({"meta": "a"}, TypeError, "read from a list of steps"),
            (None, TypeError, "read from a list of steps, got None"),
        ],
    )
    def test_a_bad_list_is_refused_with_the_index_and_the_value(self, items, error, message):
        with pytest.raises(error, match=message):
            Structure.from_list(items)


class TestTags:
    @given(STRUCTURES)
    def test_every_structure_survives_its_text(self, structure):
        assert parse(render(structure)) == Parsed(structure)

    @pytest.mark.parametrize(
        "text", ["&lt;step>", "<STEP >", "&amp;lt;", "a < b & c", "</meta>", "<step", "<<answer>>", "&AMP;"]
    )
    def test_tags_and_escapes_inside_a_field_survive(self, text):
        assert parse(render(Structure([Step(text)]))) == Parsed(Structure([Step(text)]))

    def test_only_our_own_tags_and_escapes_are_escaped(self):
        text = r"if a < b & c then <b>\frac{1}{2}</b> &gt; <meta>"
        assert f"<meta>{text[:-6]}&lt;meta></meta>" in render(Structure([Step(text)]))

    @given(STRUCTURES, st.data())
    def test_a_truncated_text_gives_a_prefix_of_the_steps(self, structure, data):
        text = render(structure)
        cut = data.draw(st.integers(0, len(text)))
        assert is_prefix(parse(text[:cut]).structure, structure)

    def test_every_truncation_gives_exactly_the_closed_steps(self):
        for cut in range(len(NATALIA_TEXT)):
            parsed = parse(NATALIA_TEXT[:cut])
            assert parsed.structure.steps == NATALIA.steps[: NATALIA_TEXT[:cut].count("</step>")]

    def test_an_unfinished_step_is_dropped_although_its_fields_are_complete(self):
        parsed = parse(NATALIA_TEXT.removesuffix("\n</step>"))
        assert parsed.structure.steps == NATALIA.steps[:1]
        assert [dropped.reason for dropped in parsed.dropped] == ["unfinished: the text ends before </step>"]
        assert parsed.dropped[0].text.startswith("<step>\n<meta>How many clips did Natalia sell altogether?")

    @pytest.mark.parametrize(
        "text",
        [
            f"Sure, here are the steps:\n```xml\n{NATALIA_TEXT}\n```\nI hope this helps!",
            NATALIA_TEXT.replace("<step>", "<STEP>").replace("</meta>", "</Meta>"),
            NATALIA_TEXT.replace("<step>", "< step >")
            .replace("</answer>", "</ answer\n>")
            .replace("</meta>", "< / meta>"),
            NATALIA_TEXT.replace("\n", "").replace("<meta>", " <meta>\n\n"),
            NATALIA_TEXT.replace("</step>\n", "", 1),
            f"<think>{NATALIA_TEXT}</think> <answer>72</answer>",
            NATALIA_TEXT.replace("</meta>", "</meta>, -"),
        ],
        ids=[
            "prose and fence",
            "case",
            "space in tags",
            "space around",
            "no </step> in between",
            "think tags",
            "commas",
        ],
    )
    def test_variants_that_models_write_are_read_without_complaint(self, text):
        assert parse(text) == Parsed(NATALIA)

    def test_fields_may_come_in_any_order(self):
        assert parse("<step><answer>24</answer><meta>why</meta></step>") == Parsed(
            Structure([Step("why", None, "24")])
        )

    def test_the_first_of_two_equal_fields_wins_and_the_second_is_reported(self):
        parsed = parse("<step><answer></answer><answer>24</answer><answer>25</answer></step>")
        assert parsed.structure == Structure([Step(answer="24")])
        assert [(d.text, d.reason) for d in parsed.dropped] == [
            ("25", "a second <answer> in one step; the first one counts")
        ]

    def test_words_between_the_fields_are_ignored_and_reported(self):
        parsed = parse("<step>First <meta>why</meta> ... <answer>24</answer> done </step>")
        assert parsed.structure == Structure([Step("why", None, "24")])
        assert [dropped.text for dropped in parsed.dropped] == ["First", "done"]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("<step></step>", "an empty step"),
            ("<step><meta> </meta></step>", "an empty step"),
            ("<step><meta>a</step>", "<meta> is not closed before the step ends"),
            ("<step><meta>a<question>b</question></step>", "<meta> is not closed before <question>"),
            ("<step><meta>a</answer></step>", "<meta> is not closed before </answer>"),
            ("<step><meta>a<step>", "<meta> is not closed before the step ends"),
        ],
    )
    def test_a_broken_step_is_dropped_with_its_reason_and_the_next_one_is_read(self, text, reason):
        parsed = parse(text.removesuffix("<step>") + NATALIA_TEXT)
        assert parsed.structure == NATALIA
        assert [dropped.reason for dropped in parsed.dropped] == [reason]

    def test_a_step_that_was_never_opened_is_reported(self):
        assert reasons(NATALIA_TEXT + "\n<meta>a</meta></step>") == ["a </step> without its <step>"]

    def test_excerpts_are_short(self):
        (dropped,) = parse("<step><meta>" + "a" * 10_000).dropped
        assert len(dropped.text) == 200

    @pytest.mark.parametrize("text", ["", "The answer is 72.", "{", "<", "#### 72", r"\frac{1}{2}", '{"x": 1}'])
    def test_text_without_steps_gives_none_and_drops_nothing(self, text):
        assert parse(text) == Parsed(Structure())


class TestJson:
    AS_JSON = json.dumps({"steps": NATALIA.to_list()})

    @pytest.mark.parametrize(
        "text",
        [
            AS_JSON,
            json.dumps({"steps": NATALIA.to_list()}, indent=2),
            json.dumps(NATALIA.to_list()),
            "\n".join(map(json.dumps, NATALIA.to_list())),
            f"Here you are: ```json\n{AS_JSON}\n``` where {{x}} is a set and \\frac{{1}}{{2}} a half.",
            AS_JSON.replace('"meta"', '" Meta"').replace('"answer": "24"', '"answer": 24, "note": null'),
        ],
        ids=["object", "indented", "list", "lines", "fence and prose", "keys and numbers"],
    )
    def test_the_json_of_guided_decoding_is_read(self, text):
        assert parse(text) == Parsed(NATALIA)

    def test_it_is_not_looked_at_where_there_is_a_step_tag(self):
        text = '{"meta": "from JSON"} ' + NATALIA_TEXT
        assert parse(text) == Parsed(NATALIA)

    def test_every_truncation_gives_exactly_the_closed_objects(self):
        for text in (self.AS_JSON, json.dumps(NATALIA.to_list(), indent=1)):
            for cut in range(len(text)):
                parsed = parse(text[:cut])
                assert parsed.structure.steps == NATALIA.steps[: text[:cut].count("}")]

    @given(STRUCTURES, st.data(), st.booleans())
    def test_a_truncated_text_gives_a_prefix_of_the_steps(self, structure, data, ascii_only):
        text = json.dumps({"steps": structure.to_list()}, ensure_ascii=ascii_only).replace("<", "(")
        cut = data.draw(st.integers(0, len(text)))
        assert is_prefix(parse(text[:cut]).structure, parse(text).structure)
        assert len(parse(text).structure) == len(structure)

    def test_the_unfinished_last_object_is_reported(self):
        parsed = parse(self.AS_JSON[:-20])
        assert parsed.structure.steps == NATALIA.steps[:1]
        assert [dropped.reason for dropped in parsed.dropped] == ["unfinished: the text ends inside a JSON object"]

    @pytest.mark.parametrize(
        "command",
        [r"\frac{1}{2}", r"2 \times 3", r"\text{cm}", r"\beta", r"a \neq b", r"\left( x \right)", r"\(x\)", r"\{1\}",
         r"\sqrt{2}", r"\nu", r"\underline{u}", r"\binom{n}{k}", r"50\%", r"\theta", r"\rho", r"\boxed{7}"],
    )  # fmt: skip
    def test_latex_with_single_backslashes_is_repaired(self, command):
        assert parse(f'{{"question": "so {command} here"}}').structure == Structure(
            [Step(question=f"so {command} here")]
        )

    @given(st.lists(st.sampled_from(["\n", "\t", "é", '"', "\\frac{1}{2}", "\\", "/", "\u2028", "A", " ", "\r\n"])))
    def test_correct_escapes_are_read_as_json(self, pieces):
        text = "A" + "".join(pieces) + "."
        assert parse(json.dumps({"meta": text})).structure == Structure([Step(text)])

    def test_newlines_before_words_stay_newlines(self):
        text = "First.\nThen\nadd\nboth.\nreally\tto\nfour\nbelow"
        assert parse(json.dumps({"meta": text})).structure == Structure([Step(text)])

    def test_a_raw_newline_in_a_string_is_read(self):
        assert parse('{"meta": "one\ntwo", "answer": "3"}').structure == Structure([Step("one\ntwo", None, "3")])

    def test_a_lost_quote_spoils_its_own_line_only(self):
        parsed = parse('{"meta": "why, "answer": "2"}\n{"meta": "why", "answer": "2"}')
        assert parsed.structure == Structure([Step("why", None, "2")])
        assert len(parsed.dropped) == 1

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('{"meta": null, "answer": " "}', "a step needs at least one of"),
            ('{"meta": true}', "meta must be text"),
            ('{"meta": "a",}', "not valid JSON"),
            ('{"meta": ["a"]}', "a JSON object that is not flat"),
            ('{"meta": "a", "answer": {"x": 1}}', "a JSON object that is not flat"),
        ],
    )
    def test_an_object_that_is_no_step_is_dropped_with_its_reason_and_the_next_one_is_read(self, text, reason):
        parsed = parse(text + '\n{"meta": "b"}')
        assert parsed.structure == Structure([Step("b")])
        assert [reason in dropped.reason for dropped in parsed.dropped] == [True]

    def test_the_first_of_two_equal_keys_wins_and_the_second_is_reported(self):
        parsed = parse('{"answer": "", "answer": 1.50, "answer": 2}')
        assert parsed.structure == Structure([Step(answer="1.50")])
        assert [dropped.text for dropped in parsed.dropped] == ["2"]

    def test_the_schema_describes_the_output_of_to_list(self):
        items = JSON_SCHEMA["properties"]["steps"]["items"]
        assert tuple(NATALIA.to_list()[0]) == FIELDS == tuple(items["properties"]) == tuple(items["required"])
        assert JSON_SCHEMA["required"] == ["steps"]
        assert JSON_SCHEMA["properties"]["steps"]["minItems"] == 1
        assert items["additionalProperties"] is JSON_SCHEMA["additionalProperties"] is False


SOCRATIC = [
    "How many eggs does Janet sell? ** Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\n"
    "How much does Janet make at the farmers' market? ** She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18",
    "How many toy cars did Dad give Olaf? ** Dad gave Olaf 10 toy cars,\n"
    "How many toy cars did Mum give Olaf? ** Mom has given 5 more, so 10 + 5 = <<10+5=15>>15 toy cars\n#### 15",
]


class TestConverters:
    def test_a_socratic_gsm8k_answer_becomes_its_steps(self):
        assert from_gsm8k_socratic(SOCRATIC[0]).to_list() == [
            {"meta": "How many eggs does Janet sell?", "question": "16-3-4", "answer": "9"},
            {"meta": "How much does Janet make at the farmers' market?", "question": "9*2", "answer": "18"},
        ]

    def test_a_socratic_line_without_a_calculation_has_no_answer(self):
        first, second = from_gsm8k_socratic(SOCRATIC[1])
        assert first == Step("How many toy cars did Dad give Olaf?", "Dad gave Olaf 10 toy cars,")
        assert (second.question, second.answer) == ("10+5", "15")

    def test_a_plain_gsm8k_solution_becomes_steps_without_meta(self):
        assert from_gsm8k_socratic("He ate 2**2 = 4.\n\n#### 4") == Structure([Step(None, "2**2", "4")])

    @pytest.mark.parametrize(
        "wrap",
        [
            dict,
            json.dumps,
            lambda keyed: {"rationale": keyed, "ans": "72"},
            lambda keyed: json.dumps({"rationale": json.dumps(keyed), "ans": "72"}),
        ],
        ids=["object", "text", "nested", "text in text"],
    )
    def test_a_step_keyed_rationale_becomes_its_steps_in_every_wrapping(self, wrap):
        keyed = {
            "HalveAprilSales": "In May: 48/2 = 24 clips.",
            "SumUp": "48 + 24 = <<48+24=72>>72",
            "StateGPSResult": "",
        }
        assert from_step_keyed(wrap(keyed)) == Structure(
            [Step("Halve April Sales", "48/2", "24"), Step("Sum Up", "48+24", "72"), Step("State GPS Result")]
        )

    def test_a_step_keyed_text_with_latex_is_read(self):
        assert from_step_keyed(r'{"TakeHalf": "\frac{48}{2} = 24"}') == Structure(
            [Step("Take Half", r"\frac{48}{2}", "24")]
        )

    @pytest.mark.parametrize("text", ["no JSON", "[1]", '"text"', "{" * 5000, "[" * 100_000])
    def test_text_that_is_no_json_object_is_refused(self, text):
        with pytest.raises(ValueError, match="a step-keyed rationale is a JSON object"):
            from_step_keyed(text)

    @pytest.mark.parametrize(
        ("keyed", "message"), [({"AddUp": [1]}, r"step 'AddUp': .*\[1\]"), ({"rationale": 3}, "got 3")]
    )
    def test_a_step_that_is_no_text_is_refused_by_name(self, keyed, message):
        with pytest.raises(TypeError, match=message):
            from_step_keyed(keyed)


SEEDS = [
    NATALIA_TEXT,
    f"```xml\n{NATALIA_TEXT}\n```",
    TestJson.AS_JSON,
    json.dumps(NATALIA.to_list(), indent=1),
    r'{"meta": "Half?", "question": "\frac{48}{2}", "answer": "24\n\u00e9 \"x\" {y}"}' + "\n" + '{"answer": 3}',
    *SOCRATIC,
    "<step><meta><step></meta></answer><question>&lt;&amp;</step></step><meta>",
    '{"steps": [{"meta": {"meta": [{"answer": "}"}]}}]}',
]
JUNK = [
    *PIECES, *("<step>", "</step>", "<meta>", "</meta>", "</question>", "<answer>") * 2, "{", "}", "[", "]", '"', "\\",
    "\\u", "\\ud83d", '{"meta":"', '"answer":', "\n", "\r", "\x00", "\x1b[0m", "\x85", "\u2028", "\ufeff", "\ud800",
    "\udfff", "😀", "é", "ſtep>", "İ", "**", "<<1+1=2>>", "#### 1", "```", "null", "NaN",
    "1e999", "true", ",", ":", " " * 9,
]  # fmt: skip


def mutated(rng, text):
    for _ in range(rng.randrange(5)):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.choice((0, 1, 1, 3, 20, 80)))
        piece = rng.choice(
            (
                "",
                rng.choice(JUNK),
                rng.choice(JUNK) * rng.randrange(4),
                text[start:stop] * 2,
                text[start:stop].swapcase(),
                chr(rng.randrange(0x110000)),
                rng.choice(SEEDS)[rng.randrange(40) :],
            )
        )
        text = text[:start] + piece + text[stop:]
    return text


@pytest.mark.slow
def test_no_text_makes_parse_raise_and_each_truncation_gives_a_prefix():
    rng = random.Random(16142)
    recovered = reported = 0
    for number in range(100_000):
        if number % 4:
            text = mutated(rng, rng.choice(SEEDS))
        else:
            text = "".join(rng.choices(JUNK, k=rng.randrange(30)))
        parsed = parse(text)
        recovered += len(parsed.structure)
        reported += len(parsed.dropped)
        assert all(len(dropped.text) <= 200 and dropped.reason for dropped in parsed.dropped)
        if number % 5 == 0:
            assert parse(render(parsed.structure)) == Parsed(parsed.structure)
        cut = text[: rng.randrange(len(text) + 1)]
        whole_has_tags, cut_has_tags = ("<step>" in t.lower().replace(" ", "") for t in (text, cut))
        if whole_has_tags == cut_has_tags:
            assert is_prefix(parse(cut).structure, parsed.structure), (text, cut)
    assert recovered > 50_000
    assert reported > 50_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    ["<step>", "</step>", "<meta>", "<step><meta>", "<step><meta>a</meta>", "<", "< ", "</", "&amp;", "&", "\\", '"',
     "{", "[", '{"', '{"meta":"', '{"meta":"{', '{"meta":"\\"{', '{"meta":"a"', '{"meta":"a"}', '{"meta":"a\\n{"}',
     '{"a":"\n', '"\n{', '{"{', '{""{', '{"meta":[', "{ ", "\\u", '{"\\'],
)  # fmt: skip
@pytest.mark.parametrize("head", ["", "<step><meta>", '{"meta":"'])
def test_long_repetitions_are_read_in_linear_time(head, unit):
    text = head + unit * (200_000 // len(unit))
    parsed = parse(text)
    assert len(parsed.structure) + len(parsed.dropped) <= text.count("<") + text.count("{") + 1
    assert parse(render(parsed.structure)).structure == parsed.structure


@given(ANY_TEXT | TRICKY_TEXT)
def test_any_text_inside_a_field_comes_out_of_json_and_tags_alike_but_for_latex(text):
    text = text.replace("\\", "").replace("<", "").strip() or "a"
    as_json = json.dumps({"meta": text}, ensure_ascii=True).replace("\\n", "\\u000a").replace("\\t", "\\u0009")
    as_json = as_json.replace("\\r", "\\u000d").replace("\\f", "\\u000c").replace("\\b", "\\u0008")
    assert parse(as_json).structure == parse(render(Structure([Step(text)]))).structure == Structure([Step(text)])
