import pytest
import torch

from rlkd.errors import UsageError
from rlkd.memory.optimizers import optimizer_bytes

SHAPES = [(64, 32), (32,), (3, 5, 7)]


def real_state(kind, dtype, **options):
    """Bytes of the tensors of a real optimizer's state, without its counters of steps."""
    parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    optimizer = kind(parameters, **options)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    return sum(
        value.numel() * value.element_size() for value in held if isinstance(value, torch.Tensor) and value.dim()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "kind"), [("adamw_torch_fused", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_state_is_as_large_as_a_real_one(name, kind, dtype):
    shapes = [(shape, torch.empty(0, dtype=dtype).element_size()) for shape in SHAPES]
    assert optimizer_bytes(name, shapes) == real_state(kind, dtype, lr=1e-3)


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix():
    from transformers import Adafactor

    shapes = [(shape, 4) for shape in SHAPES]
    assert optimizer_bytes("adafactor", shapes) == real_state(Adafactor, torch.float32, lr=1e-3, relative_step=False)


def test_8_bit_moments_take_a_byte_each_and_a_scale_per_block():
    assert optimizer_bytes("adamw_8bit", [((256, 256), 4)]) == 2 * (65536 + 4 * 256)
    assert optimizer_bytes("adamw_8bit", [((64,), 4)]) == 2 * 4 * 64


def test_an_unknown_optimizer_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match=r"optim 'adamw_tor'.*Did you mean 'adamw_torch'"):
        optimizer_bytes("adamw_tor", [])
