import torch

from rlkd.memory.live import LiveBytes, without_data


def test_storages_are_counted_while_they_exist_and_views_are_not():
    with without_data(), LiveBytes() as held:
        one = torch.zeros(1000)
        view = one.view(10, 100)
        assert held.now == 4000
        two = one + 1
        assert held.now == 8000
        del two
        assert held.now == 4000
        del one
        assert held.now == 4000  # the view needs it
        del view
        assert (held.now, held.most) == (0, 8000)


def test_what_autograd_keeps_is_counted():
    with without_data():
        weight = torch.nn.Parameter(torch.zeros(100, 100))
        with LiveBytes() as held:
            held.know(weight)
            result = (torch.zeros(50, 100) @ weight).exp()
            assert held.now == 4 * 50 * 100 * 2  # the input, and the result, which exp's gradient needs
            result.sum().backward()
            assert weight.grad is not None
            assert held.most >= 4 * (50 * 100 * 3 + 100 * 100)


def test_no_memory_is_taken():
    with without_data():
        assert torch.zeros(2**20, 2**20).numel() == 2**40
