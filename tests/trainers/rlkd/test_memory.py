import pytest
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.tiny import save_llama
from rlkd.engines.local import ModelInProcess, ModelUse
from rlkd.errors import UsageError
from rlkd.validity import load_scorer
from trainers import RLKDConfig
from trainers.rlkd.memory import memory_plan

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def letters(completions, **columns):
    return [float(len(completion)) for completion in completions]


def config(**changes):
    values = {"output_dir": "unused", "use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 4}
    values |= {"per_device_train_batch_size": 4, "max_completion_length": 32, "gradient_checkpointing": False}
    return RLKDConfig(**values | changes)


def plan(model, peft_config=None, **changes):
    names = ("device", "gpu_bytes", "prompt_tokens")
    given = {"prompt_tokens": 16} | {name: changes.pop(name) for name in names if name in changes}
    return memory_plan(config(**changes), model, peft_config, rewards=[letters], **given)


def phases(plan):
    return {phase.name: dict(phase.roles) for phase in plan.phases}


def test_training_all_weights_needs_gradients_and_two_moments(tiny_model):
    found = plan(tiny_model)
    weights, roles = found.roles["student weights"], found.roles
    parameters = roles["gradients"]
    assert weights >= parameters > 0.99 * weights  # buffers besides
    assert roles["optimizer"] == 2 * parameters
    assert "gradients" not in phases(found)["generating"]
    assert [phase.name for phase in found.phases] == ["generating", "rewards", "loss", "backward", "update"]
    assert found.peak.total == max(phase.total for phase in found.phases)


def test_an_adapter_saves_gradients_and_optimizer(tiny_model):
    full, lora = plan(tiny_model), plan(tiny_model, LORA)
    assert lora.roles["gradients"] == lora.roles["adapter"] < full.roles["gradients"] / 2
    assert lora.roles["optimizer"] == 2 * lora.roles["adapter"]


def test_the_reference_model_is_a_second_one_without_an_adapter(tiny_model):
    weights = plan(tiny_model).roles["student weights"]
    assert plan(tiny_model, beta=0.1).roles["reference weights"] == weights
    assert "reference weights" not in plan(tiny_model, LORA, beta=0.1).roles
    assert "log-probabilities" in phases(plan(tiny_model, LORA, beta=0.1))


def test_rows_make_the_cache_and_tokens_the_activations(tmp_path):
    model = save_llama(tmp_path, hidden_size=64, num_hidden_layers=4)
    few, many = plan(model), plan(model, per_device_train_batch_size=8)
    assert many.roles["KV cache"] == 2 * few.roles["KV cache"]
    longer = plan(model, max_completion_length=256)
    assert longer.roles["activations"] > 3 * few.roles["activations"]


def test_completions_of_a_group_share_their_prompt_on_the_fast_path(tiny_model):
    fast, plain = (plan(tiny_model, prompt_tokens=200, fast_path=value) for value in ("auto", "never"))
    assert fast.roles["activations"] < plain.roles["activations"]
    assert fast.roles["decoding copies"] > 0 == plain.roles["decoding copies"]


def test_accumulated_gradients_are_there_when_the_loss_is_computed(tiny_model):
    assert phases(plan(tiny_model))["loss"]["gradients"] == 0
    found = plan(tiny_model, gradient_accumulation_steps=2)
    assert phases(found)["loss"]["gradients"] == found.roles["gradients"]


def test_vllm_takes_its_share_of_the_gpu_and_keeps_it_without_sleep_mode(tiny_model):
    settings = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3, "device": "cuda"}
    awake = phases(plan(tiny_model, gpu_bytes=10**10, **settings))
    asleep = phases(plan(tiny_model, gpu_bytes=10**10, vllm_enable_sleep_mode=True, **settings))
    assert awake["generating"]["vLLM"] == asleep["generating"]["vLLM"] == awake["backward"]["vLLM"] == 3 * 10**9
    assert "vLLM" not in asleep["backward"]
    assert any("whose size is not known" in note for note in plan(tiny_model, **settings).notes)


def test_a_structure_model_in_this_process_has_weights_and_a_cache(tiny_model):
    args = config(
        reward_funcs=["structure"],
        reward_kwargs={"structure": {"decomposer": "generative", "engine": f"transformers:{tiny_model}"}},
    )
    found = memory_plan(args, tiny_model, prompt_tokens=16)
    weights = found.roles["student weights"]
    assert found.roles["structure model"] == 2 * weights  # as read, and as stored for generation
    assert phases(found)["rewards"]["structure model's cache"] > 0
    assert "structure model's cache" not in phases(found)["backward"]
    elsewhere = memory_plan(args, tiny_model, prompt_tokens=16, device="cuda")
    assert elsewhere.roles.get("structure model", 0) == weights


def test_a_process_reward_model_has_weights_on_its_device(tiny_model, process_models):
    def planned(**parameters):
        given = {"model": process_models["token"], **parameters}
        args = config(reward_funcs=["prm"], reward_kwargs={"prm": given})
        return memory_plan(args, tiny_model, prompt_tokens=16).roles

    whole = planned()["process reward model"]
    assert 0 < whole < 2 * planned()["student weights"]
    assert planned(dtype="bfloat16")["process reward model"] < 0.6 * whole
    assert "process reward model" not in planned(device="cuda:1")


def test_a_server_takes_no_memory_here(tiny_model):
    engine = "http://127.0.0.1:1/v1#model"
    args = config(
        reward_funcs=["structure"], reward_kwargs={"structure": {"decomposer": "prompted", "engine": engine}}
    )
    assert "structure model" not in memory_plan(args, tiny_model, prompt_tokens=16).roles


def parameter_bytes(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def states_per_token(folder):
    given = AutoConfig.from_pretrained(folder)
    return 2 * 4 * given.num_hidden_layers * given.num_key_value_heads * given.head_dim  # keys and values, float32


def judged(model, engine, *, device=None, **parameters):
    given = {"engine": engine, "criteria": {"right": "Is it right?", "short": "Is it short?"}, **parameters}
    args = config(reward_funcs=["judge"], reward_kwargs={"judge": given})
    return memory_plan(args, model, prompt_tokens=16, device=device)


def test_a_judge_in_this_process_has_weights_and_a_cache_on_its_device(tiny_model):
    spec, own = f"transformers:{tiny_model}", parameter_bytes(tiny_model)
    found = judged(tiny_model, spec, max_new_tokens=10)
    assert found.roles["judge"] == pytest.approx(2 * own, rel=0.01)  # as read, and as stored for generation
    # The states of four requests of 16 + 32 tokens, as they are read and with the ten tokens of the reply.
    assert phases(found)["rewards"]["judge's cache"] == 4 * (48 + 58) * states_per_token(tiny_model)
    assert "judge" in phases(found)["backward"]
    assert "judge's cache" not in phases(found)["backward"]
    assert judged(tiny_model, f"{spec}?column_major=false").roles["judge"] == pytest.approx(own, rel=0.01)
    assert judged(tiny_model, spec, device="cuda").roles["judge"] == pytest.approx(own, rel=0.01)
    assert "judge" not in judged(tiny_model, f"{spec}?device=cpu", device="cuda").roles


def test_a_judge_that_says_yes_or_no_gets_a_request_for_each_criterion(tiny_model):
    found = judged(tiny_model, f"transformers:{tiny_model}", reply="yes_no")
    assert phases(found)["rewards"]["judge's cache"] == 2 * 4 * (48 + 49) * states_per_token(tiny_model)


def test_each_judge_of_a_panel_counts_and_servers_do_not(tiny_model, tmp_path):
    other, server = save_llama(tmp_path, hidden_size=64), "http://127.0.0.1:1/v1#model"
    panel = judged(tiny_model, [f"transformers:{tiny_model}", f"transformers:{other}", server])
    both = parameter_bytes(tiny_model) + parameter_bytes(other)
    assert panel.roles["judge"] == pytest.approx(2 * both, rel=0.01)
    remote = judged(tiny_model, server)
    assert not {"judge", "judge's cache"} & set(remote.roles)


def test_an_engine_counts_once_in_a_reward_and_again_in_another_reward(tiny_model):
    spec = f"transformers:{tiny_model}"
    shared = {"decomposer": "prompted", "judge": "model", "engine": spec}
    given = {"structure": shared, "judge": {"engine": spec, "criteria": "Is it right?"}}
    args = config(reward_funcs=["structure", "judge"], reward_kwargs=given)
    roles = memory_plan(args, tiny_model, prompt_tokens=16).roles
    assert roles["structure model"] == roles["judge"] == pytest.approx(2 * parameter_bytes(tiny_model), rel=0.01)


def test_the_validity_scorer_of_teacher_kl_has_weights_and_a_cache_where_it_is_in_this_process(tiny_model):
    def planned(engine, **given):
        kl = {"teacher_kl": 0.5, "teacher": tiny_model, "proposals": "generate", "validity": "judge"}
        args = config(**kl, validity_kwargs={"engine": engine})
        return memory_plan(args, tiny_model, rewards=[letters], prompt_tokens=16, **given)

    found = planned(f"transformers:{tiny_model}")
    assert found.roles["validity scorer"] == pytest.approx(2 * parameter_bytes(tiny_model), rel=0.01)
    assert phases(found)["weighting"]["validity scorer's cache"] > 0
    assert phases(found)["weighting"]["teacher states"] == phases(found)["teacher"]["teacher states"]
    assert phases(found)["proposals"]["KV cache"] > 0  # the teacher writes its steps
    served = planned("http://127.0.0.1:1/v1#model")
    assert "validity scorer" not in served.roles
    assert "weighting" not in phases(served)
    built = load_scorer("judge", {"engine": f"transformers:{tiny_model}"})
    assert planned("http://127.0.0.1:1/v1#model", scorer=built).roles["validity scorer"] > 0


def test_a_reward_of_your_own_lists_its_models(tiny_model):
    def own(completions, **columns):
        return [0.0 for _ in completions]

    own.models_in_process = [ModelUse("critic", ModelInProcess(tiny_model, "float32", None, 512))]
    roles = memory_plan(config(), tiny_model, rewards=[own], prompt_tokens=16).roles
    assert roles["critic"] == pytest.approx(parameter_bytes(tiny_model), rel=0.01)
    assert "critic's cache" not in roles
    alone = roles["student weights"]
    own.models_in_process = [ModelUse("student weights", ModelInProcess(tiny_model, "float32", None, 512))]
    roles = memory_plan(config(), tiny_model, rewards=[own], prompt_tokens=16).roles
    assert roles["student weights"] > 1.5 * alone


def test_a_run_on_a_gpu_is_planned_without_one(tmp_path):
    model = save_llama(tmp_path, hidden_size=64)
    found = plan(model, LORA, device="cuda", model_init_kwargs={"dtype": "bfloat16"})
    assert found.device == "cuda"
    assert "process" not in found.roles
    assert found.roles["student weights"] < plan(model).roles["student weights"] * 0.6
    assert any("not measured on a GPU" in note for note in found.notes)


def test_an_unknown_optimizer_is_refused_before_anything_loads(tiny_model):
    with pytest.raises(UsageError, match="optim"):
        plan(tiny_model, optim="galore_adamw")
