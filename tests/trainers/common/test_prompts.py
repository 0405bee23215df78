"""Prompts are compared with the student before its weights load: is there a template for them, and room?"""

import pytest
from datasets import Dataset

from rlkd.data.loading import load_rows
from rlkd.errors import UsageError
from rlkd.models import resolve_model
from trainers.common.prompts import PromptCheck, fitted_dataset
from trainers.common.student import ModelFacts, read_model

ASK = [{"role": "user", "content": "1+1?"}]
SOLVE = [{"role": "system", "content": "Solve it."}, *ASK]
LONG = [{"role": "user", "content": "Think of it. " * 40}]


def dataset(*prompts) -> Dataset:
    return Dataset.from_list([{"id": f"r{i}", "prompt": prompt} for i, prompt in enumerate(prompts)])


@pytest.fixture
def check(template_model):
    return lambda name, completion=8, **options: PromptCheck(read_model(template_model(name)), completion, **options)


def test_a_model_that_cannot_be_read_is_left_to_its_loading(tmp_path) -> None:
    facts = read_model(str(tmp_path / "none"))
    assert (facts.tokenizer, facts.context, facts.ends) == (None, None, frozenset())
    assert PromptCheck(facts, 8).fitted(dataset(ASK), "train_dataset").num_rows == 1


def test_conversations_without_a_template_are_refused(check) -> None:
    with pytest.raises(UsageError, match=r"train_dataset: the prompts are conversations.* has no chat template"):
        check("base").fitted(dataset(ASK), "train_dataset")


@pytest.mark.parametrize(
    ("name", "prompt", "said"),
    [
        ("base", "1+1?", None),
        ("chatml", "1+1?", "has a chat template, which texts do not go through"),
        ("chatml", SOLVE, None),
        ("no_system", ASK, None),
        ("no_system", SOLVE, "has no system role"),
    ],
)
def test_what_the_model_does_not_see_as_given_is_said_once(check, caplog, name, prompt, said) -> None:
    check(name).fitted(dataset(prompt, prompt), "train_dataset")
    assert [record.getMessage() for record in caplog.records if said and said in record.getMessage()][1:] == []
    assert len(caplog.records) == (said is not None)


@pytest.mark.parametrize(
    ("prompt", "completion", "message"),
    [
        (LONG, 8, r"train_dataset, row 'r1': a prompt of 5\d\d tokens and max_completion_length 8 do not fit the 128"),
        ("x" * 121, 8, r"a prompt of 121 tokens and max_completion_length 8 do not fit.*set filter_overlong_prompts"),
        ("x" * 120, 9, r"lower max_completion_length to 8"),
    ],
)
def test_prompts_beyond_the_context_are_refused_with_the_three_numbers(check, prompt, completion, message) -> None:
    short = "y" if isinstance(prompt, str) else ASK
    with pytest.raises(UsageError, match=message):
        check("short", completion).fitted(dataset(short, prompt), "train_dataset")


@pytest.mark.parametrize(("characters", "completion"), [(120, 8), (1, 127), (127, 1)])
def test_prompts_that_just_fit_pass(check, characters, completion) -> None:
    assert check("short", completion).fitted(dataset("x" * characters), "train_dataset").num_rows == 1


def test_a_completion_longer_than_the_context_has_no_rows_to_leave_out(check) -> None:
    with pytest.raises(UsageError, match="max_completion_length 300 do not fit the 128") as error:
        check("short", 300, leave_out=True).fitted(dataset(ASK, ASK), "train_dataset")
    assert "filter_overlong_prompts" not in str(error.value)


def test_rows_that_do_not_fit_are_left_out_and_counted(check, caplog) -> None:
    fitted = check("short", leave_out=True).fitted(dataset(ASK, LONG, ASK), "train_dataset")
    assert fitted["id"] == ["r0", "r2"]
    assert "left out 1 of 3 rows" in caplog.text


def test_arguments_of_the_template_are_counted(check) -> None:
    tokens = {
        thinking: max(check("thinking", 2040, template={"enable_thinking": thinking}).too_long([ASK]).values())
        for thinking in (True, False)
    }
    assert tokens[False] - tokens[True] == 6  # <think>, two line ends, </think>, two line ends


def test_examples_of_a_fine_tuning_count_with_their_completion(check) -> None:
    examples = [{"prompt": "x" * 60, "completion": "y" * 60}, {"prompt": "x" * 60, "completion": "y" * 68}]
    whole = check("short", 0)
    with pytest.raises(UsageError, match=r"example 1: a prompt of 60 tokens and a completion of 69 .* 128 tokens"):
        whole.fitted_examples(examples, None)
    assert whole.fitted_examples(examples, 128) == examples  # truncated there
    assert check("short", 0, leave_out=True).fitted_examples(examples, 1024) == examples[:1]
    assert whole.fitted_examples(examples[:1], 1024) == examples[:1]


def test_prompts_that_are_rendered_elsewhere_are_fitted_in_the_data(template_model) -> None:
    tokenizer = read_model(template_model("no_system")).tokenizer
    made = fitted_dataset(dataset(SOLVE, ASK), tokenizer)
    assert made["prompt"][:] == [[{"role": "user", "content": "Solve it.\n\n1+1?"}], ASK]


def test_a_run_says_once_what_holds_for_all_datasets_and_in_its_first_process(check, caplog, monkeypatch) -> None:
    texts = dataset("1+1?")
    monkeypatch.setenv("RANK", "1")
    check("chatml").fitted_datasets(texts, texts)
    assert not caplog.records
    monkeypatch.setenv("RANK", "0")
    check("chatml").fitted_datasets(texts, {"a": texts, "b": texts})
    assert len(caplog.records) == 1


def test_words_without_a_token_are_named_once(caplog) -> None:
    check = PromptCheck(read_model(resolve_model("lab-student")), 8)
    own = load_rows("lab-dependency")[0]["question"]
    check.fitted(dataset([{"role": "user", "content": own}]), "train_dataset")
    assert not caplog.records
    other = dataset(
        [{"role": "user", "content": "Mia has 15 beads. Ben has 3 more than Mia. How many beads does Ben have?"}]
    )
    check.fitted(other, "train_dataset")
    check.fitted(other, "train_dataset")
    [record] = caplog.records
    assert "% of the prompts' tokens are unknown to " in record.message
    # A name with its verb is one token; what is read in a phrase, such as "3 more than", is not named.
    assert "cannot read 'beads', 'Mia has', 'Mia'. Name a student" in record.message


def test_words_of_a_tokenizer_without_places_in_the_text_are_named_too(caplog) -> None:
    from transformers import PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        """Knows "is", and what its template puts around it."""

        vocab_size = 3

        def get_vocab(self):
            return {"?": 0, "is": 1, "<e>": 2}

        def _tokenize(self, text, **options):
            return text.split()

        def _convert_token_to_id(self, token):
            return self.get_vocab().get(token, 0)

        def _convert_id_to_token(self, index):
            return list(self.get_vocab())[index]

    check = PromptCheck(ModelFacts("slow", Slow(unk_token="?", eos_token="<e>"), None, frozenset()), 8)
    check.check_words(["It is it"], "train_dataset")
    assert "unknown to slow, which cannot read 'It', 'it'." in caplog.text
