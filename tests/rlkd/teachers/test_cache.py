"""The offline cache: what its coding keeps, how rows are found, and what happens to damaged and half-written ones."""

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlkd.files import lock_file
from rlkd.teachers.cache import CacheBuild, CachedTeacher, CachedTrace, CacheError, build_cache, check_cache
from rlkd.teachers.coding import LARGEST_RANGE, bytes_per_token, decode, encode, quantised
from rlkd.teachers.local import LocalTeacher
from rlkd.teachers.shards import row_key
from rlkd.teachers.topk import LOWEST, TopK

K = 6
# Of the 24 traces three fit into a shard of this size.
SHARD = 3 * 12 * bytes_per_token(K, 16)


@pytest.fixture(scope="module")
def teacher(tiny_model: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)  # probabilities from nearly 1 to nearly 0, as a trained model's
    return LocalTeacher(model, AutoTokenizer.from_pretrained(tiny_model), K, name="tiny")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


class Recording:
    """A teacher that records its requests, and fails after N sequences."""

    def __init__(self, teacher: Any, fails_after: float = math.inf, **changed: Any) -> None:
        self.teacher, self.fails_after = teacher, fails_after
        self.sequences: list[list[int]] = []
        self.name, self.k, self.vocabulary = teacher.name, teacher.k, teacher.vocabulary
        for key, value in changed.items():
            setattr(self, key, value)

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        if len(self.sequences) + len(sequences) > self.fails_after:
            raise RuntimeError("the teacher went away")
        self.sequences += [list(ids) for ids in sequences]
        return self.teacher.top_k(sequences, starts)


def traces(count: int = 24) -> list[CachedTrace]:
    return [CachedTrace(f"row {n}", [5 + n, 17, 40, *range(60, 72 - n % 2)], 3) for n in range(count)]


def made(folder: Path, teacher: Any, rows: Sequence[CachedTrace] | None = None, **options: Any) -> CacheBuild:
    options = {
        "vocabulary_size": 261,
        "made_by": {"command": "make it", "student": "tiny"},
        "shard_bytes": SHARD,
    } | options
    return build_cache(folder, teacher, traces() if rows is None else rows, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def equal(one: TopK, other: TopK) -> bool:
    return (
        torch.equal(one.ids, other.ids)
        and torch.equal(one.logprobs, other.logprobs)
        and torch.equal(one.taken, other.taken)
    )


def top_of(logits: torch.Tensor, k: int, taken: int = 0) -> TopK:
    logprobs = logits.double().log_softmax(-1)
    values, ids = logprobs.topk(k)
    return TopK(ids.int(), values.float(), logprobs[:, taken].float())


# The coding


@st.composite
def distributions(draw: st.DrawFn) -> TopK:
    seed, width = draw(st.integers(0, 2**31)), draw(st.sampled_from([3, 64, 1000]))
    generator = torch.Generator().manual_seed(seed)
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0]))
    return top_of(scale * torch.randn(5, width, generator=generator), draw(st.integers(1, min(width, 64))))


@settings(max_examples=150, deadline=None)
@given(distributions())
def test_ids_are_exact_log_probabilities_near_and_the_tail_is_stored(top: TopK) -> None:
    back = quantised(top)
    assert torch.equal(back.ids, top.ids)
    assert torch.equal(back.taken, top.taken)
    spread = (top.logprobs[:, :1] - top.logprobs).clamp(max=LARGEST_RANGE)
    kept = top.logprobs[:, :1] - spread
    step = spread.max(1, keepdim=True).values / 65535
    assert ((back.logprobs - kept).abs() <= step + 4e-6).all()
    mass, mass_back = (item.double().exp().sum(1) for item in (top.logprobs, back.logprobs))
    torch.testing.assert_close(mass_back, mass, atol=4e-7, rtol=0)
    assert (back.logprobs <= 0).all()
    assert (back.logprobs[:, 1:] <= back.logprobs[:, :-1]).all()


@settings(max_examples=60, deadline=None)
@given(distributions())
def test_coding_what_was_coded_changes_next_to_nothing(top: TopK) -> None:
    once = quantised(top)
    torch.testing.assert_close(quantised(once).logprobs, once.logprobs, atol=1e-5, rtol=0)


def test_divergences_on_the_support_and_its_tail_are_those_of_the_live_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = 4 * torch.randn(2, 400, 2000, generator=generator, dtype=torch.float64)
    live = top_of(teacher, 64)
    theirs = student.log_softmax(-1).gather(-1, live.ids.long())

    def both_ways(logprobs: torch.Tensor) -> torch.Tensor:
        p, q = logprobs.double().exp(), theirs.exp()
        tail_p, tail_q = (1 - p.sum(-1)).clamp(min=1e-7), 1 - q.sum(-1)
        forward = (p * (p.log() - q.log())).sum(-1) + tail_p * (tail_p / tail_q).log()
        return torch.stack([forward, (q * (q.log() - p.log())).sum(-1) + tail_q * (tail_q / tail_p).log()])

    gap = (both_ways(quantised(live).logprobs) - both_ways(live.logprobs)).abs()
    assert gap.max() < 2e-4
    assert (gap.mean(1) < 2e-5).all()
    # Half precision, the obvious coding, is an order of magnitude away.
    assert (both_ways(live.logprobs.half()) - both_ways(live.logprobs)).abs().max() > 10 * gap.max()


@pytest.mark.parametrize(
    ("size", "bits"),
    [(1000, 16), (65536, 16), (65537, 17), (151_936, 18), (262_144, 18), (262_145, 19), (1_000_000, 20)],
)
def test_every_id_of_a_vocabulary_comes_back(size, bits) -> None:
    ids = torch.tensor([[0, 1, size - 1, size // 2, 65535 % size, 65536 % size, size - 2]], dtype=torch.int32)
    top = TopK(ids, torch.linspace(-1, -3, 7)[None], torch.zeros(1))
    coded = encode(top, bits)
    assert torch.equal(decode(coded, bits).ids, ids)
    arrays = (coded.low_ids, coded.high_ids, coded.codes, coded.highest, coded.lowest, coded.taken)
    assert sum(array.nbytes for array in arrays) == bytes_per_token(7, bits)
    with pytest.raises(ValueError, match=rf"expected 0 to {2 ** (bits - 1) - 1}"):
        encode(TopK(ids + 2 ** (bits - 1), top.logprobs, top.taken), bits - 1)


def test_a_token_takes_at_most_400_bytes_at_64_of_a_large_vocabulary() -> None:
    assert [bytes_per_token(64, bits) for bits in (16, 18, 20)] == [268, 284, 300]


def test_a_token_that_is_impossible_spoils_nothing_else() -> None:
    top = TopK(torch.tensor([[4, 2, 9]]).int(), torch.tensor([[-0.3, -1.4, LOWEST]]), torch.tensor([LOWEST]))
    back = quantised(top)
    torch.testing.assert_close(back.logprobs[:, :2], top.logprobs[:, :2], atol=1e-3, rtol=0)
    assert back.logprobs[0, 2] < -60
    assert back.taken[0] == LOWEST


@pytest.mark.parametrize("value", [math.nan, -math.inf, 0.1])
def test_what_is_no_log_probability_is_refused(value) -> None:
    with pytest.raises(ValueError, match="not finite or above 0"):
        encode(TopK(torch.tensor([[1]]).int(), torch.tensor([[value]]), torch.zeros(1)), 16)


# Reading


def test_what_comes_back_is_the_live_teacher_quantised_bit_for_bit(teacher, tokenizer, tmp_path) -> None:
    rows = traces()
    ids, starts = [row.ids for row in rows], [row.start for row in rows]
    made(tmp_path, teacher, rows, shard_bytes=2**20)  # one shard, so one batch, as for the live teacher
    cached = CachedTeacher(tmp_path, tokenizer=tokenizer, k=K)
    live = teacher.top_k(ids, starts)
    for one, other in zip(cached.top_k(ids, starts), live, strict=True):
        assert equal(one, quantised(other))
        assert not torch.equal(one.logprobs, other.logprobs)
    assert (cached.name, cached.k, cached.vocabulary, len(cached)) == ("tiny", K, teacher.vocabulary, 24)


def test_rows_come_back_from_many_shards_in_any_order(teacher, tmp_path) -> None:
    made(tmp_path, teacher)
    assert len(list(tmp_path.glob("shard-*"))) == 8
    ids = [row.ids for row in traces()[::-1]]
    for one, other in zip(CachedTeacher(tmp_path).top_k(ids, [3] * 24), teacher.top_k(ids, [3] * 24), strict=True):
        assert torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.taken, other.taken, atol=1e-4, rtol=0)


def test_a_row_is_found_by_its_exact_ids_only(teacher, tokenizer, tmp_path) -> None:
    made(tmp_path, teacher)
    cached = CachedTeacher(tmp_path, tokenizer=tokenizer)
    row = traces()[4]
    with pytest.raises(CacheError) as missed:
        cached.top_k([row.ids, row.ids[:-1]], [3, 3])
    message = str(missed.value)
    assert "no row for sequence 1" in message
    assert row_key(row.ids[:-1]).hex() in message
    assert repr(tokenizer.decode(row.ids[3:-1])) in message
    assert "student tiny" in message
    assert message.endswith("make it")


def test_a_part_of_a_trace_can_be_requested_and_nothing_before_it(teacher, tmp_path) -> None:
    made(tmp_path, teacher)
    cached = CachedTeacher(tmp_path)
    ids = traces()[0].ids
    [whole], [part] = cached.top_k([ids], [3]), cached.top_k([ids], [7])
    assert equal(part, TopK(whole.ids[4:], whole.logprobs[4:], whole.taken[4:]))
    with pytest.raises(CacheError, match=r"has tokens 3 to 14 of sequence 0, but not from 2 on"):
        cached.top_k([ids], [2])


def test_another_k_or_tokenizer_is_refused_with_both_values(teacher, tmp_path) -> None:
    made(tmp_path, teacher)
    with pytest.raises(CacheError, match=r"has k = 6 tokens per position, this run expects k = 64"):
        CachedTeacher(tmp_path, k=64)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(CacheError, match=rf"fingerprint {teacher.vocabulary}, this run's has [0-9a-f]{{16}}"):
        CachedTeacher(tmp_path, tokenizer=other)


@pytest.mark.slow
def test_other_processes_read_the_same(teacher, tmp_path) -> None:
    made(tmp_path / "cache", teacher)
    cached = CachedTeacher(tmp_path / "cache", k=K)
    rows = traces()[7:11]
    arguments = [row.ids for row in rows], [row.start for row in rows]
    pickled = pickle.dumps((cached, arguments))
    assert len(pickled) < 2000
    (tmp_path / "arguments.pickle").write_bytes(pickled)
    code = (
        "import pickle, sys; cached, arguments = pickle.load(open(sys.argv[1], 'rb'));"
        "print([(top.ids.tolist(), top.logprobs.tolist()) for top in cached.top_k(*arguments)])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "arguments.pickle")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    expected = str([(top.ids.tolist(), top.logprobs.tolist()) for top in cached.top_k(*arguments)])
    for reader in readers:
        assert reader.communicate(timeout=300)[0].strip() == expected


def test_a_shard_is_a_safetensors_file(teacher, tmp_path) -> None:
    made(tmp_path, teacher)
    arrays = load_file(tmp_path / "shard-00000.safetensors")
    assert arrays["low_ids"].shape == arrays["codes"].shape
    assert arrays["low_ids"].dtype == np.uint16
    assert arrays["offsets"].tolist() == [0, 12, 23, 35]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"has no teacher cache \(index.json is missing\).*--cache_dir"),
        ("{", "is not the index of a teacher cache"),
        ("[]", "is not the index of a teacher cache"),
        ('{"version": 99}', "has version 99; this rlkd reads version 1"),
    ],
)
def test_a_folder_without_a_cache_is_an_error(tmp_path, text, message) -> None:
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(CacheError, match=message):
        CachedTeacher(tmp_path)


# Damage


def damage(folder: Path, how: str) -> None:
    path = folder / "shard-00002.safetensors"
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:-100])
    else:  # a byte of an id, or of the list of rows
        place = len(data) - 300 if how == "altered" else data.index(row_key(traces()[7].ids))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@pytest.mark.parametrize("how", ["missing", "truncated", "altered", "its rows altered"])
def test_a_damaged_shard_is_named_and_rebuilt_alone(teacher, tmp_path, how) -> None:
    made(tmp_path, teacher)
    before = content(tmp_path)
    damage(tmp_path, how)
    word = how.removeprefix("its rows ")
    name = rf"{tmp_path}/shard-00002\.safetensors is {word}.*"
    [problem] = check_cache(tmp_path)
    assert "shard-00002" in problem
    assert word in problem
    with pytest.raises(CacheError, match=name + "make it"):
        CachedTeacher(tmp_path).top_k([row.ids for row in traces()], [3] * 24)

    others = {path: path.stat().st_ino for path in tmp_path.glob("shard-*") if path.name != "shard-00002.safetensors"}
    recording, lines = Recording(teacher), []
    built = made(tmp_path, recording, report=lines.append)
    assert recording.sequences == [row.ids for row in traces()[6:9]]
    assert (built.cached, built.computed, built.damaged) == (21, 3, [problem])
    assert f"{problem}. It is rebuilt." in lines
    assert content(tmp_path) == before
    assert {path: path.stat().st_ino for path in others} == others
    assert check_cache(tmp_path) == []


def test_rows_of_other_shards_are_read_while_one_is_altered(teacher, tmp_path) -> None:
    made(tmp_path, teacher)
    damage(tmp_path, "altered")
    cached = CachedTeacher(tmp_path)
    for number, row in enumerate(traces()):
        if number == 7:
            with pytest.raises(
                CacheError, match=r"shard-00002\.safetensors is altered.*, at its row 1\. This command"
            ):
                cached.top_k([row.ids], [3])
        else:
            cached.top_k([row.ids], [3])


@pytest.mark.parametrize("how", ["missing", "truncated", "altered", "its rows altered"])
def test_a_damaged_shard_of_other_rows_is_not_taken_away_and_its_own_command_is_named(teacher, tmp_path, how) -> None:
    made(tmp_path, teacher, traces(12))
    made(tmp_path, teacher, traces()[12:], made_by={"command": "make the others"})
    damage(tmp_path, how)  # of the first build
    before = content(tmp_path)
    with pytest.raises(CacheError, match="make it") as named:
        CachedTeacher(tmp_path).top_k([row.ids for row in traces()], [3] * 24)
    assert "make the others" not in str(named.value)
    recording = Recording(teacher)
    with pytest.raises(CacheError, match=r"built of other traces than these. Rebuild it first: make it"):
        made(tmp_path, recording, traces()[12:], made_by={"command": "make the others"})
    assert content(tmp_path) == before
    assert recording.sequences == []
    assert made(tmp_path, recording, traces(12)).computed == 3
    assert recording.sequences == [row.ids for row in traces()[6:9]]
    found = CachedTeacher(tmp_path)
    assert len(found) == 24
    assert found.top_k([traces()[20].ids], [3])
    with pytest.raises(CacheError, match="To add what is missing: make it or make the others"):
        found.top_k([[1, 2, 3]], [1])


def test_a_damaged_shard_is_built_by_any_command_that_has_its_rows(teacher, tmp_path) -> None:
    made(tmp_path, teacher, traces(12))
    damage(tmp_path, "altered")  # which rows it had can still be read
    assert made(tmp_path, teacher, traces(), made_by={"command": "make all"}).computed == 15
    assert len(CachedTeacher(tmp_path)) == 24


def test_rows_that_the_data_no_longer_have_are_reported_as_lost(teacher, tmp_path) -> None:
    made(tmp_path, teacher)
    damage(tmp_path, "truncated")
    lines: list[str] = []
    made(tmp_path, teacher, [*traces()[:7], *traces()[9:]], report=lines.append)
    assert "2 traces or more of the damaged shards are not given again, and are lost." in lines


def test_a_cache_says_at_once_how_many_traces_it_lacks_and_which_is_the_first(teacher, tmp_path) -> None:
    made(tmp_path, teacher, traces(10))
    cached = CachedTeacher(tmp_path)
    cached.require(traces(10))
    with pytest.raises(CacheError, match=r"has no row for 14 of 24 traces, the first is row 10 .*make it"):
        cached.require(traces())


# Building


def test_an_interrupted_build_continues_and_ends_with_the_same_bytes(teacher, tmp_path) -> None:
    made(tmp_path / "whole", teacher)
    for fails_after in (0, 3, 10):
        with pytest.raises(RuntimeError, match="went away"):
            made(tmp_path / "cut", Recording(teacher, fails_after=fails_after))
    # What a killed process leaves: half a file, and a shard that was not counted yet.
    (tmp_path / "cut" / ".shard-00004.safetensors.part").write_bytes(b"half")
    (tmp_path / "cut" / "shard-00005.safetensors").write_bytes(b"not counted")
    recording = Recording(teacher)
    assert made(tmp_path / "cut", recording).cached == 12
    assert recording.sequences == [row.ids for row in traces()[12:]]
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob(".*.part"))


def test_a_whole_cache_sends_no_requests_and_new_rows_are_added(teacher, tmp_path) -> None:
    made(tmp_path, teacher, traces(10))
    before = content(tmp_path)
    recording = Recording(teacher)
    assert made(tmp_path, recording, traces(10)).computed == 0
    assert content(tmp_path) == before
    assert made(tmp_path, recording, traces(12)).computed == 2
    assert recording.sequences == [row.ids for row in traces()[10:12]]
    after = content(tmp_path)
    assert all(after[name] == data for name, data in before.items() if name != "index.json")
    assert len(CachedTeacher(tmp_path)) == 12


def test_equal_traces_have_one_row(teacher, tmp_path) -> None:
    recording = Recording(teacher)
    assert made(tmp_path, recording, [*traces(4), *traces(4)]).computed == 4
    assert len(recording.sequences) == 4


def test_a_shard_holds_what_fits_and_a_trace_that_does_not_fit_is_alone(teacher, tmp_path) -> None:
    long = CachedTrace("long", [5, 6, *[7, 8] * 40], 2)
    built = made(tmp_path, teacher, [*traces(2), long, *traces(4)[2:]])
    rows = [entry["rows"] for entry in json.loads((tmp_path / "index.json").read_text())["shards"]]
    assert rows == [2, 1, 2]
    assert built.tokens == 12 + 11 + 80 + 12 + 11
    assert built.bytes == sum(path.stat().st_size for path in tmp_path.glob("shard-*"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "other"}, r"the teacher is tiny in the cache and other in this run"),
        ({"k": 7}, r"k is 6 in the cache and 7 in this run"),
        ({"vocabulary": "f" * 16}, r"fingerprint [0-9a-f]{16}, this run's has ffffffffffffffff"),
    ],
)
def test_another_teacher_k_or_tokenizer_needs_another_folder(teacher, tmp_path, changed, message) -> None:
    made(tmp_path, teacher, traces(3))
    before = content(tmp_path)
    recording = Recording(teacher, **changed)
    with pytest.raises(CacheError, match=message):
        made(tmp_path, recording)
    assert not recording.sequences
    assert content(tmp_path) == before


def test_two_builds_of_one_folder_are_refused(teacher, tmp_path) -> None:
    lock = lock_file(tmp_path / ".lock")
    assert lock is not None
    with lock, pytest.raises(CacheError, match="is being built by another process"):
        made(tmp_path, teacher)


def test_an_invalid_log_probability_names_the_row(teacher, tmp_path) -> None:
    class Broken(Recording):
        def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
            tops = super().top_k(sequences, starts)
            tops[1].logprobs[0, 0] = math.nan
            return tops

    with pytest.raises(CacheError, match="the teacher tiny on row 1: a log-probability is not finite"):
        made(tmp_path, Broken(teacher))
