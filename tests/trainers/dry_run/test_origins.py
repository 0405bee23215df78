from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trainers.dry_run.origins import changed_keys, config_file, shown, typed_keys


@dataclass
class Keys:
    rate: float = 1e-6
    steps: int = 10
    names: list[str] = field(default_factory=lambda: ["a"])
    hub_token: str | None = None
    teacher: str | None = None
    use_cpu: bool = False
    dry_run: str | None = None
    samples: int = field(default=0, metadata={"aliases": ["--few"]})


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text("rate: 0.1\nsteps: 10\nnames: [b]\nhub_token: secret\n")
    return path


def test_keys_that_differ_are_listed_with_their_origin(file):
    parsed = Keys(0.5, 10, ["b"], "secret", "http://me:word@host/v1#m", True, "check", 3)
    command = ["--config", str(file), "--rate", "0.5", "--teacher=http://me:word@host/v1#m", "--dry_run", "--few", "3"]
    found = {key.name: (key.value, key.origin) for key in changed_keys([parsed], command, {"use_cpu": True})}
    assert found == {
        "rate": ("0.5", "command line"),
        "names": ('["b"]', "file"),
        "hub_token": ("***", "file"),
        "teacher": ("http://***@host/v1#m", "command line"),
        "use_cpu": ("true", "this machine"),
        "samples": ("3", "command line"),
    }


def test_without_a_file_the_command_line_is_all():
    assert list(changed_keys([Keys()], [], {})) == []
    assert config_file(["--rate", "1"]) is None
    assert config_file(["--config=a.yaml"]) == Path("a.yaml")


def test_keys_are_read_in_both_spellings():
    assert typed_keys(["--num-steps", "3", "--rate=-1", "-h", "--no_bf16"]) == {"num_steps", "rate", "bf16"}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("reward_kwargs", {"r": {"api_key": "plain"}}, '{"r": {"api_key": "***"}}'),
        ("teachers", ["http://me:pw@host/v1#m"], '["http://***@host/v1#m"]'),
        ("gsrm", {"engine": "http://me:p,w@h"}, '{"engine": "http://***@h"}'),
        ("hub_token", None, "null"),
        ("push_to_hub_token", "plain", "***"),
        ("eos_token", "<|im_end|>", "<|im_end|>"),
        ("pad_token", "<pad>", "<pad>"),
    ],
)
def test_secrets_inside_values_are_masked_and_special_tokens_are_shown(name, value, text):
    assert shown(name, value) == text


def test_long_values_are_shortened():
    assert shown("text", "a\nb  c") == "a b c"
    assert shown("text", "x" * 500).endswith("x...")
