"""The context of a model by its configuration."""

from types import SimpleNamespace

import pytest
from transformers import GPT2Config, LlamaConfig, MambaConfig

from rlkd.context import context_length


@pytest.mark.parametrize(
    ("rotary", "positions", "context"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 2048, 2048),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, 2048, 8192),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 2048, 4096),
        # YaRN: with the original length, whether or not the scaled one is written out.
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4},
            1024,
            4096,
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4},
            4096,
            4096,
        ),
        # Llama 3.1: the scaled length is written out.
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
                "rope_theta": 1e4,
            },
            4096,
            4096,
        ),
    ],
)
def test_scaled_rotary_positions_are_counted(rotary, positions, context) -> None:
    assert context_length(LlamaConfig(rope_parameters=rotary, max_position_embeddings=positions)) == context


def test_settings_per_kind_of_layer_and_old_names_are_read() -> None:
    rotary = {"full": {"rope_type": "linear", "factor": 8.0}, "sliding": {"rope_type": "default"}}
    assert context_length(SimpleNamespace(max_position_embeddings=100, rope_parameters=rotary)) == 800
    old = {"type": "linear", "factor": 2.0}
    assert context_length(SimpleNamespace(max_position_embeddings=100, rope_scaling=old)) == 200


def test_learned_positions_bound_and_recurrent_models_do_not() -> None:
    assert context_length(GPT2Config(n_positions=64)) == 64
    assert context_length(MambaConfig()) is None
