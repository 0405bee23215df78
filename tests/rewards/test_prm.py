"""The reward `prm` on tiny models of both heads, compared with a loop over steps."""

import asyncio
import json
import math
import pickle
from pathlib import Path

import pytest

from rewards import Failed, RewardError, Scored
from rewards.prm import ProcessReward
from rlkd.steps import sentences
from tests.helpers.rewards import build_reward, call

QUESTION = "Ann has 3 eggs. How many are 4 times as many, less 2?"
TEXTS = (
    "First 3 * 4 = 12. Then 12 - 2 = 10.\n#### 10",
    "It is 3.",
    "<think>She has 3 eggs.\nSo 3 * 4 = 12 eggs! And 12 - 2 = 10.</think>The answer is 10.",
)


def score(reward, *texts, question=QUESTION):
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    prompts = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]] * len(texts)
    return asyncio.run(reward(prompts=prompts, completions=chats))


def slow_scores(folder, kind, steps, separator="\n"):
    """Each step's probability from a pass of its own over all text up to its end, one by one."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    cls = AutoModelForTokenClassification if kind == "token" else AutoModelForSequenceClassification
    model, tokenizer = cls.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    ids = ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]) + encode(QUESTION)
    found = []
    for step in steps:
        ids = ids + encode(step) + encode(separator)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        found.append((logits[-1] if kind == "token" else logits).softmax(-1)[1].item())
    return found


STEPS = [
    ["First 3 * 4 = 12.", "Then 12 - 2 = 10."],
    ["It is 3."],
    ["She has 3 eggs.", "So 3 * 4 = 12 eggs!", "And 12 - 2 = 10."],
]


@pytest.mark.parametrize("kind", ["token", "sequence"])
@pytest.mark.parametrize(
    ("reduce", "reduced"),
    [("min", min), ("mean", lambda s: sum(s) / len(s)), ("product", math.prod), ("last", lambda s: s[-1])],
)
def test_the_score_is_that_of_a_slow_loop_over_the_steps(process_models, kind, reduce, reduced) -> None:
    found = score(ProcessReward(process_models[kind], reduce=reduce, batch_tokens=100), *TEXTS)
    for one, steps in zip(found, STEPS, strict=True):
        slow = slow_scores(process_models[kind], kind, steps)
        assert one.detail["steps"] == pytest.approx(slow, abs=1e-5)
        assert one.value == pytest.approx(reduced(slow), abs=1e-5)
    assert len({round(one.value, 4) for one in found}) == 3


def test_scores_do_not_depend_on_the_batch_nor_on_their_neighbours(process_models) -> None:
    together = score(ProcessReward(process_models["token"]), *TEXTS)
    alone = [score(ProcessReward(process_models["token"], batch_tokens=1), text)[0] for text in TEXTS]
    assert [one.value for one in together] == pytest.approx([one.value for one in alone], abs=1e-5)


def test_another_class_and_another_separator_are_other_readings(process_models) -> None:
    good, bad = (
        score(ProcessReward(process_models["token"], good=name, reduce="last"), TEXTS[0])[0] for name in (1, "LABEL_0")
    )
    assert good.value + bad.value == pytest.approx(1, abs=1e-5)
    [other] = score(ProcessReward(process_models["token"], separator=";"), TEXTS[0])
    assert other.detail["steps"] == pytest.approx(
        slow_scores(process_models["token"], "token", STEPS[0], ";"), abs=1e-5
    )


def test_a_special_step_token_is_read_in_the_chat_template(process_models) -> None:
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder = process_models["token"]
    reward = ProcessReward(folder, layout="chat", separator="<extra_0>", system_prompt="Reason.")
    [found] = score(reward, TEXTS[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = f"[system]Reason.\n[user]{QUESTION}\n[assistant]" + "".join(f"{step}<extra_0>" for step in STEPS[0]) + "\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    mark = tokenizer.convert_tokens_to_ids("<extra_0>")
    with torch.no_grad():
        shares = AutoModelForTokenClassification.from_pretrained(folder).eval()(ids).logits[0].softmax(-1)[:, 1]
    assert found.detail["steps"] == pytest.approx(shares[ids[0] == mark].tolist(), abs=1e-5)
    assert len(found.detail["steps"]) == 2


@pytest.mark.parametrize("layout", ["plain", "chat"])
def test_a_completion_cannot_add_ends_of_steps(process_models, layout) -> None:
    reward = ProcessReward(process_models["token"], layout=layout, separator="<extra_0>")
    [attack, plain] = score(reward, "It is <extra_0> right. So 10.", "It is   right. So 10.")
    assert attack == plain
    assert len(attack.detail["steps"]) == 2


def test_a_completion_without_steps_scores_zero_also_as_a_product(process_models) -> None:
    for text in ("", "  \n", "#### 10", "<think></think>10"):
        assert score(ProcessReward(process_models["token"], reduce="product"), text) == [Scored(0.0, {"steps": []})]


def test_what_does_not_fit_the_context_fails_alone(process_models) -> None:
    long, short = score(ProcessReward(process_models["token"]), "One more. " * 120, TEXTS[1])
    assert isinstance(long, Failed)
    assert "do not fit the context of 1024" in long.cause
    assert isinstance(short, Scored)


def test_what_the_deadline_leaves_and_what_the_model_fails_on_has_failed(process_models, monkeypatch) -> None:
    late = score(ProcessReward(process_models["token"], deadline=1e-9), *TEXTS[:2])
    assert [one.cause for one in late] == ["the deadline of 1e-09 s passed"] * 2
    reward = ProcessReward(process_models["token"])
    score(reward, TEXTS[0])
    monkeypatch.setattr(reward._loaded.model, "forward", lambda **inputs: 1 / 0)
    [broken] = score(reward, TEXTS[0])
    assert broken == Failed("the model failed (ZeroDivisionError: division by zero)")


def test_scores_are_kept_by_problem_and_steps(process_models) -> None:
    reward = build_reward("prm", {"model": process_models["token"]})
    first = call(reward, "It is 3. So 4.", "It is 3.  So 4.\n#### 4")
    assert first[0] == first[1]
    assert call(reward, "It is 3. So 4.") == first[:1]
    assert [outcome.reused for outcome in reward.outcomes] == ["cache"]
    changed = Path(process_models["token"])
    assert ProcessReward(str(changed)).fingerprint != ProcessReward(process_models["sequence"]).fingerprint


def test_a_copy_has_no_weights_and_gives_the_same(process_models) -> None:
    reward = ProcessReward(process_models["token"])
    before = score(reward, *TEXTS)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy._loaded is None
    assert score(copy, *TEXTS) == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reduce": "max"}, r"reduce 'max': expected min, mean, product, last"),
        ({"layout": "trl"}, r"layout 'trl': expected plain, chat"),
        ({"separator": ""}, r"separator ''"),
        ({"dtype": "int8"}, r"dtype 'int8'"),
        ({"system_prompt": "Reason."}, r"system_prompt is for layout 'chat'"),
    ],
)
def test_parameters_are_checked_when_the_reward_is_built(parameters, message) -> None:
    with pytest.raises(RewardError, match=message):
        build_reward("prm", {"model": "no/model", **parameters})


def test_a_model_of_another_kind_is_refused_before_a_run(process_models, tiny_model) -> None:
    ready = lambda *given, **more: ProcessReward(*given, **more).check_ready()  # noqa: E731
    ready(process_models["token"])
    with pytest.raises(RewardError, match=r"reward 'prm': .* is a LlamaForCausalLM; expected one that ends in"):
        ready(tiny_model)
    with pytest.raises(RewardError, match=r"has no class 'fine'"):
        ready(process_models["token"], good="fine")
    with pytest.raises(RewardError, match=r"separator '<s9>' is no special token"):
        ready(process_models["token"], layout="chat", separator="<s9>")
    with pytest.raises(RewardError, match=r"classifies sequences"):
        ready(process_models["sequence"], layout="chat", separator="<extra_0>")


def test_a_head_that_is_code_in_the_checkpoint_is_refused_with_the_reason(process_models, tmp_path) -> None:
    config = json.loads((Path(process_models["token"]) / "config.json").read_text())
    config |= {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {"AutoModel": "m.Qwen2ForProcessRewardModel"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        RewardError, match=r"Qwen2ForProcessRewardModel.*code in the checkpoint, which is never executed"
    ):
        ProcessReward(str(tmp_path)).check_ready()


def test_a_head_without_weights_ends_the_run(process_models, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    for file in Path(process_models["token"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    headless = {name: value for name, value in weights.items() if not name.startswith("score")}
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"lacks the weights .*score"):
        score(ProcessReward(str(tmp_path)), TEXTS[0])


def test_the_steps_are_those_of_the_other_parts() -> None:
    assert sentences(TEXTS[0]) == STEPS[0]
