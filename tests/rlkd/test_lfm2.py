"""LFM2 with a head for token classification: what is saved loads again, as a process reward model."""

import torch
from transformers import AutoConfig

from rlkd.classifiers import load_classifier, read_classifier
from rlkd.lfm2 import Lfm2ForTokenClassification
from rlkd.models import resolve_model


def test_a_saved_model_loads_as_a_classifier_whose_values_do_not_depend_on_padding(tmp_path) -> None:
    from rlkd.lab.students import tokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(resolve_model("lab-student"), num_labels=2)
    Lfm2ForTokenClassification(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = load_classifier(read_classifier(str(tmp_path)))
    assert loaded.facts.per_token
    rows, places = [[20, 30, 40], [50, 60, 70, 80, 90]], [[0, 2], [4]]
    together = loaded.good_shares(rows, places)
    alone = [loaded.good_shares([row], [own])[0] for row, own in zip(rows, places, strict=True)]
    torch.testing.assert_close(torch.tensor(together[0] + together[1]), torch.tensor(alone[0] + alone[1]))
    assert len(set(together[0] + together[1])) == 3
