import os

import psutil
import pytest
from trl.kernels import chunked_logprob
from trl.trainer import utils

from rlkd.errors import UsageError
from trainers import RLKDConfig
from trainers.common import memory


def config(**changes):
    values = {"output_dir": "unused", "use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 2}
    return RLKDConfig(**values | {"per_device_train_batch_size": 2} | changes)


def test_the_tiles_of_the_log_probabilities_are_those_of_trl():
    assert memory.TILE_ROWS == chunked_logprob.TOKEN_CHUNK_SIZE
    assert memory.TILE_COLUMNS == utils._CHUNKED_LOGPROB_CHUNK_SIZE


def test_the_process_counts_as_it_is_now():
    assert memory.resident_bytes() == pytest.approx(psutil.Process(os.getpid()).memory_info().rss, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (None, False)),
        ({"load_in_4bit": True}, (4, False)),
        ({"quantization_config": {"load_in_8bit": True}}, (8, False)),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}}, (4, True)),
    ],
)
def test_quantisation_is_read_from_the_options_of_the_model(settings, expected):
    assert memory.quantisation(settings) == expected


def test_what_has_no_estimate_is_named(tiny_model):
    with pytest.raises(UsageError, match="device 'mps'"):
        memory.read_student(config(), tiny_model, None, "mps")
    with pytest.raises(UsageError, match="optim 'galore_adamw'"):
        memory.read_student(config(optim="galore_adamw"), tiny_model, None, "cpu")
    with pytest.raises(UsageError, match="the model 'no/model' cannot be read"):
        memory.read_student(config(), "no/model", None, "cpu")


def test_sharded_weights_have_no_estimate(tiny_model):
    args = config()
    args.deepspeed = "zero3.json"
    with pytest.raises(UsageError, match="fsdp or deepspeed"):
        memory.read_student(args, tiny_model, None, "cpu")


def test_a_loaded_model_is_estimated_like_its_name(tiny_model):
    from transformers import AutoModelForCausalLM

    loaded = memory.read_student(config(), AutoModelForCausalLM.from_pretrained(tiny_model), None, "cuda")
    named = memory.read_student(config(), tiny_model, None, "cuda")
    assert loaded.fixed == named.fixed
    assert "process" not in loaded.fixed
