"""The contract of selectors, and those that need no model."""

import asyncio
import itertools
import logging
import random as python_random
import subprocess
import sys
import textwrap

import pytest

from rlkd.engines import EngineError
from rlkd.errors import UsageError
from rlkd.rationales.records import Candidate, Question, candidate
from rlkd.rationales.select import BUILT_IN, SelectorError, SelectorVerdict, apply, judges_whole_set, load_selector
from rlkd.rationales.select.diverse import structure_similarity
from rlkd.rationales.select.ngrams import jaccard, ngrams
from rlkd.rationales.select.srd import rouge_l
from rlkd.registry import registry
from rlkd.structure import Step, Structure

USER = textwrap.dedent("""
    from rlkd.rationales.select import SelectorVerdict

    def brief(questions, limit=10):
        return [
            [SelectorVerdict(None if len(each.text) <= limit else "too long", {"size": len(each.text)})
             for each in question.candidates]
            for question in questions
        ]

    class Named:
        def __init__(self, source, student="nobody"):
            self.source, self.student = source, student
        async def __call__(self, questions):
            return [
                [SelectorVerdict(None if each.source == self.source else "another source") for each in one.candidates]
                for one in questions
            ]

    def all_at_once(questions):
        return [[SelectorVerdict() for _ in question.candidates] for question in questions]
    all_at_once.whole_set = True

    ready = Named("bank")
    number = 3
""")


@pytest.fixture
def user(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USER)
    return file


def question(*texts, answer="7", text="What are 3 and 4 together?", source="ready", name="q"):
    return Question(name, text, answer, tuple(candidate(name, each, source) for each in texts))


def select(selector, *questions):
    return asyncio.run(apply(selector, questions))


def kept_texts(selector, *questions):
    kept, _ = select(selector, *questions)
    return [[each.text for each in item.candidates] for item in kept]


def reasons(selector, *questions):
    _, dropped = select(selector, *questions)
    return [each.reason for each in dropped]


def test_the_built_in_selectors_are_listed_without_loading_a_library_of_models_or_statistics():
    code = (
        "import sys, rlkd.rationales.select; from rlkd.registry import registry;"
        "print(*registry('selector').names());"
        "print([m for m in ('torch', 'transformers', 'trl', 'sklearn', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [" ".join(sorted(BUILT_IN)), "[]"]


def test_every_built_in_name_leads_to_something_that_makes_a_selector():
    needs = {"difficulty": "student", "rank_surprisal": "student", "srd": "student", "judge": "engine"}
    for name in BUILT_IN:
        given = {needs[name]: "transformers:nowhere"} if name in needs else {}
        selector = load_selector(name, given)
        assert selector.__name__ == name
        assert judges_whole_set(selector) == (name == "srd")
        assert callable(registry("selector").find(name).target)


def test_a_function_of_a_file_is_a_selector_with_its_parameters(user):
    selector = load_selector(f"short={user}:brief", {"limit": 3})
    kept, dropped = select(selector, question("abc", "abcd"))
    assert selector.__name__ == "short"
    assert [(each.text, each.scores) for each in kept[0].candidates] == [("abc", {"size": 3})]
    [only] = dropped
    assert (only.question_id, only.stage, only.reason) == ("q", "short", "too long")
    assert only.candidate.scores == {"size": 4}


def test_a_class_and_an_object_of_a_file_are_selectors_and_may_be_async(user):
    mixed = Question("q", "?", None, (candidate("q", "a", "bank"), candidate("q", "b", "ready")))
    assert kept_texts(load_selector(f"{user}:Named", {"source": "ready"}), mixed) == [["b"]]
    assert kept_texts(load_selector(f"{user}:ready"), mixed) == [["a"]]
    assert judges_whole_set(load_selector(f"{user}:all_at_once"))


def test_what_a_run_offers_to_all_selectors_goes_to_those_that_have_a_place_for_it(user):
    offered = {"student": "tiny", "seed": 3, "questions": ()}
    assert load_selector(f"{user}:Named", {"source": "ready"}, defaults=offered).student == "tiny"
    own = load_selector(f"{user}:Named", {"source": "ready", "student": "mine"}, defaults=offered)
    assert own.student == "mine"
    load_selector(f"{user}:brief", defaults=offered)
    with pytest.raises(SelectorError, match="no parameter 'seed'"):
        load_selector(f"{user}:brief", {"seed": 3})


@pytest.mark.parametrize(
    ("spec", "parameters", "message"),
    [
        ("corect", {}, "Did you mean 'correct'"),
        ("shortest", {"most": 3}, "no parameter 'most'.*keep"),
        ("shortest", {"keep": 0}, "keep=0.*at least 1"),
        ("difficulty", {}, "needs the parameter 'student'"),
        ("difficulty", {"student": "gpt"}, "does not name an engine"),
        ("difficulty", {"student": "transformers:x", "template": "Q:"}, r"with \{question\} in it"),
        ("judge", {"engine": "http://127.0.0.1:1/v1"}, "name the model"),
        ("diverse", {"measure": "words"}, "'ngram', 'cosine', 'structure'"),
        ("diverse", {"threshold": 0}, "threshold=0"),
        ("clean", {"max_foreign": 2}, "max_foreign=2: expected a share from 0 to 1"),
        ("clean", {"near_copy": 1.01}, "near_copy=1.01: expected a share above 0 and at most 1"),
        ("clean", {"max_characters": 0}, "max_characters=0: expected at least 1"),
        ("correct", {"fallback": "first"}, "fallback='first'"),
        ("srd", {"student": "transformers:x", "keep": 0}, "keep=0"),
        ("rank_surprisal", {"student": "http://127.0.0.1:1/v1#m"}, "does not tell the ranks"),
    ],
)
def test_a_mistake_in_a_config_is_named_before_any_model_is_read(spec, parameters, message):
    with pytest.raises(UsageError, match=message):
        load_selector(spec, parameters)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "a NoneType"),
        ([], "0 lists for 1 questions"),
        ([[SelectorVerdict()]], "question 'q'.*a list of 2"),
        ([[SelectorVerdict(), True]], "question 'q', candidate .*found True"),
        ([[SelectorVerdict(), SelectorVerdict(None, {"x": float("nan")})]], "score x=nan"),
    ],
)
def test_what_the_contract_does_not_know_names_the_selector_and_the_place(answer, message):
    def wrong(questions):
        return answer

    wrong.__name__ = "wrong"
    with pytest.raises(SelectorError, match=f"selector 'wrong'.*{message}"):
        select(wrong, question("a", "b"))


def test_a_question_of_which_nothing_is_left_goes_and_the_others_keep_their_columns():
    full = Question("a", "?", "1", (candidate("a", "It is 1.", "ready"),), {"level": 2})
    kept, dropped = select(load_selector("shortest", {"keep": 1}), full, question(name="empty"))
    assert [(item.id, item.columns) for item in kept] == [("a", {"level": 2})]
    assert dropped == []


# correct


def test_correct_distinguishes_all_faults_of_an_answer():
    found = question("3 + 4 = 7\n#### 7", "The answer is $7.00.", "#### 8", "it is 7", r"\boxed{7}")
    kept, dropped = select(load_selector("correct"), found, question("#### 1", answer=None, name="r"))
    assert [each.answer for each in kept[0].candidates] == ["7", "$7.00", "7"]
    assert [each.reason for each in dropped] == ["wrong answer", "no answer", "the question has no right answer"]


def test_correct_believes_the_answer_that_the_data_name():
    named = Question("q", "?", "18", (candidate("q", "2 * 9 = $18\nA: 18", "ready", answer="18"),))
    assert len(select(load_selector("correct"), named)[0]) == 1
    unnamed = question("2 * 9 = $18\nA: 18", answer="18")
    assert reasons(load_selector("correct"), unnamed) == ["no answer"]
    assert len(select(load_selector("correct", {"fallback": "last_number"}), unnamed)[0]) == 1


@pytest.mark.slow
def test_correct_survives_an_answer_that_cannot_be_compared():
    evil = question("#### 9^{9^{9^{9^{9}}}}", "#### 7", answer="\\sqrt{49}")
    _, dropped = select(load_selector("correct", {"seconds": 1.0}), evil)
    assert [each.reason for each in dropped] in (["answers could not be compared"], ["wrong answer"])
    unreadable = question("#### 3", answer="???")
    assert reasons(load_selector("correct"), unreadable) == ["the right answer cannot be read"]


class Answering:
    """An engine that writes what it is told to for each prompt, and remembers the prompts."""

    name, guided = "answering", False

    def __init__(self, answer):
        self.answer = answer
        self.prompts = []

    async def generate(self, prompts, sampling, *, deadline=None):
        from rlkd.engines import Completion

        self.prompts += prompts
        found = [self.answer(prompt) for prompt in prompts]
        return [item if isinstance(item, EngineError) else Completion(item, "stop", 1) for item in found]


def test_a_second_look_checks_whether_the_steps_of_a_hinted_rationale_lead_to_its_answer():
    engine = Answering(lambda prompt: " 7" if "3 + 4 =" in prompt else " 12")
    told = question("3 + 4 = 7\n#### 7", "Surely so.\n#### 7", "3 + 4 = 8\n#### 8", source="hinted")
    free = question("Surely so.\n#### 7", name="r")
    kept, dropped = select(load_selector("correct", {"second_look": engine}), told, free)
    assert [len(item.candidates) for item in kept] == [1, 1]
    assert [each.reason for each in dropped] == ["its steps do not lead to the answer", "wrong answer"]
    assert len(engine.prompts) == 2
    assert not any("7" in prompt for prompt in engine.prompts)


def test_a_second_look_that_fails_once_drops_that_one_and_says_so(caplog):
    broken = EngineError("answering", "out of order.")
    engine = Answering(lambda prompt: broken if "Surely" in prompt else "7")
    told = question("3 + 4 = 7\n#### 7", "Surely so.\n#### 7", source="hinted")
    with caplog.at_level(logging.WARNING):
        assert reasons(load_selector("correct", {"second_look": engine}), told) == ["could not be measured"]
    assert "1 of 2 candidates could not be measured" in caplog.text
    assert "out of order" in caplog.text
    # Of one hinted rationale in a call, it is one of one: no reason to end a run.
    free = question("3 + 4 = 7\n#### 7", name="r")
    one = question("Surely so.\n#### 7", source="hinted")
    kept, dropped = select(load_selector("correct", {"second_look": engine}), one, free)
    assert [item.id for item in kept] == ["r"]
    assert [each.reason for each in dropped] == ["could not be measured"]


# diverse

PLAIN = "48/2 = 24 clips in May.\n48 + 24 = 72 clips in all.\n#### 72"
REWORDED = (
    "In May Natalia sold half of the number that she had sold before, which is 48/2 = 24 clips.\n"
    "Adding both months gives the sum 48 + 24 = 72.\n#### 72"
)
OTHER_WAY = "Two months are 48 * 1.5, since half comes on top: 48 * 1.5 = 72 clips.\n#### 72"


def test_diverse_by_ngrams_keeps_the_shorter_of_two_that_share_most_words():
    longer = PLAIN.replace("in all", "in all, then")
    found = question(longer, PLAIN, REWORDED)
    _, dropped = select(load_selector("diverse"), found)
    assert [(each.candidate.text, each.reason) for each in dropped] == [(longer, "same approach as a shorter one")]
    assert dropped[0].candidate.scores["nearest"] == jaccard(ngrams(PLAIN), ngrams(longer)) >= 0.5


def test_diverse_by_structure_sees_one_way_behind_two_wordings_and_two_behind_one_answer():
    selector = load_selector("diverse", {"measure": "structure"})
    assert kept_texts(selector, question(REWORDED, PLAIN, OTHER_WAY)) == [[PLAIN, OTHER_WAY]]
    # The words say the opposite: nothing goes.
    assert len(kept_texts(load_selector("diverse"), question(REWORDED, PLAIN, OTHER_WAY))[0]) == 3


def test_diverse_by_structure_takes_the_structure_that_a_candidate_brings():
    same = Structure([Step("How many?", "3 + 4", "7")])
    made = (
        Candidate("a", "first text", "bank", "7", structure=same),
        Candidate("b", "quite another text", "bank", "7", structure=same),
    )
    assert kept_texts(load_selector("diverse", {"measure": "structure"}), Question("q", "?", "7", made)) == [
        ["first text"]
    ]


def test_diverse_by_structure_compares_words_where_there_are_no_steps():
    prose = "He leaves before she comes, so they never meet in the hall on that day.\nThe answer is no."
    other = "Since both of them are in town every evening, sooner or later they do.\nThe answer is yes."
    found = question(prose, prose.replace("He", "Well, he"), other, answer="no")
    assert kept_texts(load_selector("diverse", {"measure": "structure"}), found) == [[prose, other]]


def test_diverse_by_cosine_uses_the_embedder():
    pytest.importorskip("sklearn")
    copy = PLAIN.replace("clips in all", "clips in all!")
    assert kept_texts(load_selector("diverse", {"measure": "cosine"}), question(copy, PLAIN, OTHER_WAY)) == [
        [PLAIN, OTHER_WAY]
    ]


@pytest.mark.parametrize("measure", ["ngram", "structure"])
def test_what_diverse_keeps_depends_on_neither_order_nor_neighbours(measure):
    texts = [PLAIN, REWORDED, OTHER_WAY, PLAIN + " ", PLAIN.replace("May", "June"), "no steps at all"]
    selector = load_selector("diverse", {"measure": measure})
    expected = {each.id for each in select(selector, question(*texts))[0][0].candidates}
    source = python_random.Random(0)
    for _ in range(10):
        source.shuffle(texts)
        kept, _ = select(selector, question("a neighbour", name="a"), question(*texts))
        assert {each.id for each in kept[1].candidates} == expected


def test_structural_similarity_is_symmetric_and_1_for_the_same():
    from rlkd.gsrm.judges import DeterministicJudge

    judge = DeterministicJudge()
    structures = [
        Structure([Step("How many in May?", "48/2", "24"), Step("How many in all?", "48+24", "72")]),
        Structure([Step(None, "0.5 * 48", "24")]),
        Structure([Step("In all?", "48 * 1.5", "72"), Step("Again?", None, "72"), Step("So?", "1+1", "2")]),
        Structure(),
    ]
    for mine, theirs in itertools.product(structures, repeat=2):
        value = structure_similarity(mine, theirs, judge)
        assert value == structure_similarity(theirs, mine, judge)
        assert 0 <= value <= 1
        assert (value == 1) == (mine == theirs)


def test_rouge_l_is_that_of_the_slow_table():
    def slow(mine, theirs):
        table = [[0] * (len(theirs) + 1) for _ in range(len(mine) + 1)]
        for i, j in itertools.product(range(len(mine)), range(len(theirs))):
            same = mine[i] == theirs[j]
            table[i + 1][j + 1] = table[i][j] + 1 if same else max(table[i][j + 1], table[i + 1][j])
        return 2 * table[-1][-1] / (len(mine) + len(theirs))

    source = python_random.Random(1)
    for _ in range(50):
        mine, theirs = ([source.choice("abcde") for _ in range(source.randrange(1, 90))] for _ in range(2))
        assert rouge_l(" ".join(mine), " ".join(theirs)) == pytest.approx(slow(mine, theirs))
    assert rouge_l("", "a") == rouge_l("...", "") == 0


# controls


def test_longest_and_shortest_go_by_characters_and_ties_by_id():
    found = question("aa", "bb", "c", "dddd")
    tie = min(found.candidates[:2], key=lambda each: each.id).text
    assert kept_texts(load_selector("longest", {"keep": 1}), found) == [["dddd"]]
    assert set(kept_texts(load_selector("shortest", {"keep": 2}), found)[0]) == {"c", tie}
    assert reasons(load_selector("shortest", {"keep": 3}), found) == ["not among the shortest"]


def test_random_is_a_draw_of_the_seed_and_the_ids_alone_and_about_even():
    questions = [question(*"abcdef", name=str(number)) for number in range(300)]
    selector = load_selector("random", {"keep": 2, "seed": 1})
    kept, dropped = select(selector, *questions)
    assert {each.reason for each in dropped} == {"not drawn"}
    names = {(item.id, each.text) for item in kept for each in item.candidates}
    turned = [question(*"fedcba", name=str(number)) for number in reversed(range(300))]
    again, _ = select(selector, *turned)
    assert {(item.id, each.text) for item in again for each in item.candidates} == names
    counts = [sum(text == letter for _, text in names) for letter in "abcdef"]
    assert sum(counts) == 600
    assert all(60 <= count <= 140 for count in counts)
    other, _ = select(load_selector("random", {"keep": 2, "seed": 2}), *questions)
    assert {(item.id, each.text) for item in other for each in item.candidates} != names
