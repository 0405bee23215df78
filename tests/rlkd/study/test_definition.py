import pytest
import yaml

from rlkd.errors import UsageError
from rlkd.installation import studies
from rlkd.study.definition import Study, find_study, read_study

GOOD = {
    "title": "A title",
    "question": "Does it help?",
    "recipe": "rlkd",
    "settings": {"eval_samples": 4, "eval_every": 5, "max_steps": 50},
    "arms": {"plain": {"reward_kwargs": {}}, "other": {"max_steps": 60, "beta": None}},
    "control": "plain",
    "seeds": [1, 2, 3],
    "primary": ["sampled_accuracy", "rollouts_to_goal"],
    "smoke": {"max_steps": 2},
}
STAGES = [
    {"recipe": "rationales", "keys": {"writers": ["free"], "output_dir": None}, "smoke": {"max_rows": 2}},
    {"keys": {"dataset_name": "{run}/rationales/rationales.jsonl"}},
]


@pytest.fixture
def read(tmp_path):
    def read(smoke: bool = False, **changes):
        path = tmp_path / "mine.yaml"
        content = {key: value for key, value in (GOOD | changes).items() if value != "absent"}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return read_study(path, smoke=smoke)

    return read


def test_an_arm_has_the_settings_and_its_own_keys_on_the_recipes_default_config(read) -> None:
    study = read()
    (plain,), (other,) = study.arms["plain"], study.arms["other"]
    assert plain.keys == {"eval_samples": 4, "eval_every": 5, "max_steps": 50, "reward_kwargs": {}}
    assert plain.config.endswith("recipes/rlkd.yaml")
    assert plain.base["reward_funcs"] == ["accuracy", "structure"]
    assert (other.keys["max_steps"], other.setting("beta")) == (60, plain.base["beta"])
    assert study.name == "mine"


def test_arms_are_compared_with_the_control_or_as_the_file_says(read) -> None:
    assert read().comparisons == [["other", "plain"]]
    arms = {"plain": {}, "a": {}, "b": {}}
    assert read(arms=arms).comparisons == [["a", "plain"], ["b", "plain"]]
    assert read(arms=arms, comparisons={"a": ["plain", "b"]}).comparisons == [["a", "plain"], ["a", "b"]]


def test_a_smoke_study_has_two_seeds_and_its_keys_win(read) -> None:
    study = read(smoke=True)
    assert (study.seeds, study.smoke) == ([1, 2], True)
    assert [stages[-1].keys["max_steps"] for stages in study.arms.values()] == [2, 2]


def test_the_last_stage_of_an_arm_is_the_studys_recipe_and_an_earlier_one_stands_alone(read) -> None:
    stages = [{**STAGES[0], "keys": {"writers": ["free"]}}, STAGES[1]]
    first, last = read(smoke=True, recipe="sft", arms={"plain": {}, "written": stages}).arms["written"]
    assert (first.name, first.recipe, first.keys) == ("rationales", "rationales", {"writers": ["free"], "max_rows": 2})
    assert (last.recipe, last.keys["eval_samples"], last.keys["max_steps"]) == ("sft", 4, 2)
    # Another recipe does not take the study's config.
    arms = {"plain": {}, "distilled": [{"recipe": "validity_kd", "keys": {"lmbda": 0}}]}
    (only,) = read(config="rlkd_recorded.yaml", arms=arms).arms["distilled"]
    assert only.config.endswith("validity_kd.yaml")


def test_a_study_survives_its_record(read) -> None:
    study = read(shared=[{"recipe": "rationales"}])
    assert Study.from_dict(study.to_dict()) == study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "plane"}, "control: 'plane' is no arm. Did you mean 'plain'?"),
        ({"seeds": [1]}, "expected a list of at least 2 numbers"),
        ({"seeds": [1, 1, 2]}, "each must be another number"),
        ({"seeds": ["1", "2"]}, "expected a list of at least 2 numbers"),
        ({"primary": ["acuracy"]}, "primary: 'acuracy' is no figure. Did you mean 'accuracy'?"),
        ({"comparisons": {"other": "plane"}}, "comparisons: other with 'plane': expected another arm. Did you mean"),
        ({"comparisons": {"other": ["plain", "other"]}}, "comparisons: other with 'other': expected another arm."),
        ({"comparisons": {"othr": "plain"}}, "comparisons: unknown key 'othr'. Did you mean 'other'?"),
        ({"question": "absent"}, "there is no question. A study needs title, question,"),
        ({"recipe": "rlkt"}, "arms: plain: no recipe 'rlkt'. Did you mean 'rlkd'?"),
        ({"recipe": "absent"}, "arms: plain: no recipe."),
        ({"config": "nowhere.yaml"}, "arms: plain: there is no config 'nowhere.yaml'"),
        ({"setings": {}}, "unknown key 'setings'. Did you mean 'settings'?"),
        ({"arms": {"plain": {}}}, "arms: plain alone; a comparison needs at least 2"),
        ({"arms": {"plain": {}, "a/b": {}}}, "'a/b' names a folder"),
        ({"arms": {"plain": {}, "shared": {}}}, "'shared' names a folder"),
        ({"arms": {"plain": {}, False: {}}}, "False names a folder"),
        ({"arms": {"plain": {}, "b": 3}}, "arms: b: expected keys with values, found 3"),
        ({"arms": {"plain": {}, "b": []}}, "arms: b: a list without a stage"),
        ({"arms": {"plain": {}, "b": [{"kees": {}}]}}, "arms: b: unknown key 'kees'. Did you mean 'keys'?"),
        ({"arms": {"plain": {}, "b": [{"recipe": "sft"}, {"recipe": "sft"}]}}, "two stages called 'sft'"),
        ({"arms": {"plain": {}, "b": {"output_dir": "x"}}}, "arms: b: output_dir is set by the study"),
        ({"arms": {"plain": {}, "b": STAGES}}, "arms: b, stage 1: output_dir is set by the study"),
        ({"settings": {"eval_every": 5, "eval_samples": 0}}, "sampled_accuracy needs eval_samples above 0, and arm"),
        ({"settings": {"eval_samples": 4}}, "rollouts_to_goal needs eval_every above 0"),
        ({"settings": {**GOOD["settings"], "eval_rows": 0}}, "evaluates no held-out rows: add dataset_test_name"),
        ({"config": "rlkd_lora_1gpu.yaml"}, "arm 'plain' evaluates no held-out rows: add dataset_test_name"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_way_out(read, changes, message) -> None:
    with pytest.raises(UsageError, match=r"mine\.yaml: ") as error:
        read(**changes)
    assert message in str(error.value)


def test_a_file_that_is_not_there_or_not_yaml_is_named(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml: No such file"):
        read_study(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("arms: [")
    with pytest.raises(UsageError, match=r"bad\.yaml is not YAML"):
        read_study(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UsageError, match="expected keys with values"):
        read_study(tmp_path / "list.yaml")


def test_a_study_is_found_by_its_name_or_its_path(tmp_path) -> None:
    assert find_study("validity-kd") == studies()["validity-kd"]
    assert find_study(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(UsageError, match=r"no study 'validty-kd'\. Did you mean 'validity-kd'\?"):
        find_study("validty-kd")


def test_a_recipe_and_a_config_of_the_users_own_are_beside_the_study(read, tmp_path) -> None:
    (tmp_path / "my_recipe.py").write_text("")
    (tmp_path / "my_config.yaml").write_text("max_steps: 7")
    (stage,) = read(recipe="my_recipe.py", config="my_config.yaml").arms["plain"]
    assert (stage.name, stage.recipe, stage.base) == ("my_recipe", str(tmp_path / "my_recipe.py"), {"max_steps": 7})


@pytest.mark.parametrize("name", studies())
def test_an_included_study_is_valid_and_small_as_a_smoke_test(name) -> None:
    path = studies()[name]
    study = read_study(path)
    assert f"rlkd study {name} --out" in path.read_text().split("\n\n")[0]
    for stages in read_study(path, smoke=True).arms.values():
        assert stages[-1].setting("max_steps") <= 3
    assert len(study.seeds) >= 3
