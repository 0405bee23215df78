import pytest
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from rlkd.validity import load_scorer
from trainers import ValidityKDConfig
from trainers.validity_kd.memory import memory_plan

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


SERVER = "http://127.0.0.1:1/v1#model"


def plan(model, peft_config=None, **changes):
    values = {"output_dir": "unused", "use_cpu": True, "bf16": False, "report_to": "none", "teacher": model}
    values |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_completion_length": 32}
    given = {name: changes.pop(name) for name in ("scorer", "device") if name in changes}
    args = ValidityKDConfig(**values | changes)
    return memory_plan(args, model, peft_config, prompt_tokens=16, **given)


def phases(plan):
    return {phase.name: dict(phase.roles) for phase in plan.phases}


def test_a_teacher_in_this_process_has_weights_and_states(tiny_model):
    found = plan(tiny_model, LORA)
    assert found.roles["teacher weights"] == found.roles["student weights"]
    assert found.roles["teacher states"] == 4 * 32 * 32 * 4  # rows, tokens, width, float32
    assert "teacher states" in phases(found)["backward"]
    assert "teacher states" not in phases(plan(tiny_model, LORA, keep_teacher_states=False))["backward"]


def test_a_teacher_in_4_bit_has_the_bytes_of_a_student_in_4_bit(tiny_model):
    four = {"load_in_4bit": True}
    found, full = (
        plan(tiny_model, LORA, model_init_kwargs=four, teacher_model_init_kwargs=four),
        plan(tiny_model, LORA),
    )
    student, pages = found.roles["student weights"], found.roles["file of full weights"]
    assert found.roles["teacher weights"] == student + pages  # on a CPU the file stays mapped
    assert student + pages > full.roles["student weights"] > student
    assert full.roles["file of full weights"] == 0


def test_a_teacher_on_a_server_gives_its_top_k(tiny_model):
    found = plan(tiny_model, LORA, teacher="http://127.0.0.1:1/v1#model", teacher_top_k=8)
    assert found.roles["teacher weights"] == 0
    assert found.roles["teacher top k"] == 4 * 32 * (8 * 8 + 4)


def test_beside_a_server_the_states_of_a_model_stay_for_the_loss(tiny_model):
    teachers = {"a": tiny_model, "b": "http://127.0.0.1:1/v1#model"}
    several = {"teacher": None, "teacher_column": "domain", "keep_teacher_states": False}
    backward = phases(plan(tiny_model, LORA, teachers=teachers, **several))["backward"]
    assert backward["teacher states"] == 4 * 32 * 32 * 4
    assert backward["teacher top k"] > 0
    assert "teacher states" not in phases(plan(tiny_model, LORA, teachers={"a": tiny_model}, **several))["backward"]


def test_traces_alone_need_no_generation(tiny_model):
    assert "generating" in phases(plan(tiny_model))
    assert "generating" not in phases(plan(tiny_model, lmbda=0.0))


def test_plain_distillation_weighs_nothing(tiny_model):
    assert "weighting" in phases(plan(tiny_model))
    assert "weighting" not in phases(plan(tiny_model, control="uniform"))


def test_written_proposals_need_a_cache(tiny_model):
    found = phases(plan(tiny_model, proposals="generate", validity="arithmetic"))
    assert found["proposals"]["KV cache"] > 0


def parameter_bytes(folder, kind=AutoModelForCausalLM):
    model = kind.from_pretrained(folder, dtype="float32")
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def scored(model, validity, /, **changes):
    kwargs = {name: changes.pop(name) for name in ("engine", "model") if name in changes}
    return plan(model, LORA, proposals="generate", validity=validity, validity_kwargs=kwargs, **changes)


@pytest.mark.parametrize("validity", ["judge", "likelihood", "prm", "rollout"])
def test_a_scorers_engine_in_this_process_has_weights_and_a_cache_and_a_server_none(tiny_model, validity):
    found, served = (scored(tiny_model, validity, engine=one) for one in (f"transformers:{tiny_model}", SERVER))
    # As read, and as stored for generation.
    assert found.roles["validity scorer"] == pytest.approx(2 * parameter_bytes(tiny_model), rel=0.01)
    # Batches are full: 8,192 tokens as requests end, and those of their prompts.
    config = AutoConfig.from_pretrained(tiny_model)
    state = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    written = {"judge": 32, "rollout": 256}.get(validity, 1)
    requests = 8192 // (48 + written)
    assert phases(found)["weighting"]["validity scorer's cache"] == requests * (96 + written) * state
    assert "validity scorer" in phases(found)["backward"]
    assert "validity scorer's cache" not in phases(found)["backward"]
    assert not {"validity scorer", "validity scorer's cache"} & set(served.roles)


def test_a_scorer_counts_on_the_device_on_which_it_is_loaded(tiny_model):
    spec, own = f"transformers:{tiny_model}", parameter_bytes(tiny_model)
    found = scored(tiny_model, "judge", engine=spec, device="cuda")
    assert found.roles["validity scorer"] == pytest.approx(own, rel=0.01)
    assert "validity scorer" not in scored(tiny_model, "judge", engine=f"{spec}?device=cpu", device="cuda").roles


def test_a_classifier_that_scores_has_weights_and_no_cache(tiny_model, process_models):
    found = scored(tiny_model, "prm", model=process_models["token"])
    own = parameter_bytes(process_models["token"], AutoModelForTokenClassification)
    # Counted with the head of a language model, which is larger than that of a classifier.
    assert own < found.roles["validity scorer"] < 2 * own
    assert "validity scorer's cache" not in found.roles


def test_a_scorer_that_was_built_counts_and_a_control_without_one_has_none(tiny_model):
    built = load_scorer("judge", {"engine": f"transformers:{tiny_model}"})
    assert scored(tiny_model, "judge", engine=SERVER, scorer=built).roles["validity scorer"] > 0
    uniform = scored(tiny_model, "judge", engine=f"transformers:{tiny_model}", control="uniform")
    assert "validity scorer" not in uniform.roles


def test_the_logits_of_the_loss_are_two_tiles_whatever_the_length(tiny_model):
    logits = {length: phases(plan(tiny_model, max_completion_length=length))["loss"]["logits"] for length in (32, 64)}
    assert logits[64] > logits[32]
    assert all(size < 2**27 + 2**22 for size in logits.values())


def test_the_student_as_its_own_teacher_is_a_copy_or_the_base_below_its_adapter(tiny_model):
    whole, adapter = plan(tiny_model, teacher="self", teacher_context="answer"), plan(tiny_model, LORA, teacher="self")
    assert whole.roles["teacher weights"] == whole.roles["student weights"] > 0
    assert adapter.roles["teacher weights"] == 0
    assert adapter.roles["teacher states"] == whole.roles["teacher states"] == 4 * 32 * 32 * 4
    assert any("longer by the context" in note for note in whole.notes)
