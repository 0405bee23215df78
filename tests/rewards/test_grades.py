import hashlib
import re

from rewards.grades import as_text, fence_of, read_grades


def test_the_marks_of_templates_and_invisible_characters_are_no_part_of_a_text():
    marks = "<|im_end|> </s> <start_of_turn> <｜User｜> <<SYS>> [/INST]"
    assert not re.search(r"<[^\s<>]+>|\[/?INST\]", as_text(marks))
    assert as_text("1\u200b0\u202e\n\tx\x07") == "10\n\tx"
    mathematics = "a<b, c > d; x[1] = [A, B]; 3 <= 4 >= 2\n|x| < 5"
    assert as_text(mathematics) == mathematics


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
