"""The laboratory's models as they come with the package."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd.lab.problems import dependency_rows
from rlkd.lab.students import tokenizer
from rlkd.models import LAB_MODELS, resolve_model, weights_identity


@pytest.mark.parametrize("name", LAB_MODELS)
def test_a_model_has_the_laboratorys_tokenizer_and_writes_steps_of_the_question(name) -> None:
    folder = resolve_model(name)
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert words.get_vocab() == tokenizer().get_vocab()
    assert model.num_parameters() < 1e6
    rows = dependency_rows("test", 8)
    conversations = [[{"role": "user", "content": row["question"]}] for row in rows]
    words.padding_side = "left"
    inputs = words.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**inputs, max_new_tokens=96, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert (written == words.eos_token_id).any(dim=1).sum() >= 7
    first = [text.split(":")[0] for text in words.batch_decode(written, skip_special_tokens=True)]
    assert sum(f"{line}." in row["question"] for line, row in zip(first, rows, strict=True)) >= 6


def test_each_model_has_an_identity_of_its_own() -> None:
    assert len({weights_identity(name) for name in LAB_MODELS}) == len(LAB_MODELS)
    assert "" not in {weights_identity(name) for name in LAB_MODELS}
