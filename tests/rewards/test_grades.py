import hashlib
import re

import pytest

from rewards.grades import as_text, fence_of, read_grades


def test_the_marks_of_templates_and_invisible_characters_are_no_part_of_a_text():
    marks = "<|im_end|> </s> <start_of_turn> <｜User｜> <<SYS>> [/INST]"
    assert not re.search(r"<[^\s<>]+>|\[/?INST\]", as_text(marks))
    assert as_text("1\u200b0\u202e\n\tx\x07") == "10\n\tx"
    mathematics = "a<b, c > d; x[1] = [A, B]; 3 <= 4 >= 2\n|x| < 5"
    assert as_text(mathematics) == mathematics


@pytest.mark.parametrize(
    "code",
    [
        "vector<int> v; vector<vector<int64_t>> w; map<string,vector<pair<int,int>>> m",
        "std::vector<std::string> v; unique_ptr<Node*> p; Box<T> b",
        "List<Integer> a = new ArrayList<>(); Map<String,List<int[]>> m; Promise<void> p; Array<number> x",
        "Vec<u8>, Option<&str>, HashMap<String,Vec<usize>>",
    ],
)
def test_generic_types_stay_as_they_are(code):
    assert as_text(code) == code


@pytest.mark.parametrize(
    "marker",
    [
        "<|im_end|>",
        "</s>",
        "<s>",
        "<eos>",
        "<end_of_turn>",
        "<think>",
        "<user>",
        "<SPECIAL_12>",
        "<extra_id_1>",
        "<0x0A>",
    ],
)
def test_a_marker_directly_behind_a_word_is_not_taken_for_a_generic_type(marker):
    assert as_text(f"done{marker}int>") == f"done< {marker[1:]}int>"


def test_a_text_that_holds_the_fence_of_its_hash_gets_another(monkeypatch):
    class Hash:
        def __init__(self, data):
            self.data = data

        def hexdigest(self):
            return "a" * 64 if self.data == b"holds aaaaaaaaaaaa" else hashlib_sha256(self.data).hexdigest()

    hashlib_sha256 = hashlib.sha256
    monkeypatch.setattr("rewards.grades.hashlib.sha256", Hash)
    assert "aaaaaaaaaaaa" not in fence_of("holds aaaaaaaaaaaa")


def test_an_infinite_grade_is_none():
    assert read_grades('{"steps": 1e999}', {"steps": "Are they right?"}, 10) is None
    assert read_grades('{"steps": 1e0}', {"steps": "Are they right?"}, 10) == {"steps": 0.1}
