"""LFM2 with a head for token classification, which transformers 5.23 has for most models, but not for this one.

Importing this module makes `AutoModelForTokenClassification` know it. The names of the weights are those of
transformers' other heads: `model.*` and `score.*`.
"""

from transformers import AutoModelForTokenClassification, Lfm2Config, Lfm2PreTrainedModel
from transformers.modeling_layers import GenericForTokenClassification


class Lfm2ForTokenClassification(GenericForTokenClassification, Lfm2PreTrainedModel):
    """LFM2 and a linear layer on its last hidden states."""


AutoModelForTokenClassification.register(Lfm2Config, Lfm2ForTokenClassification, exist_ok=True)
