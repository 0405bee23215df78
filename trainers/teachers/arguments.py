"""What a run's config says to the code that trainers share on teachers and the weights of steps."""

from __future__ import annotations

from typing import Any, Protocol


class TeacherArguments(Protocol):
    """The fields of `RLKDConfig` and `ValidityKDConfig` that are read here; their help texts are there."""

    chat_template_kwargs: Any
    trust_remote_code: bool
    allow_other_template: bool
    teacher_model_init_kwargs: Any
    teacher_model_revision: str | None
    validity: str | None
    proposals: str
    proposal_engine: str | None

    @property
    def process_index(self) -> int:
        """The number of this process."""

    @property
    def needs_scorer(self) -> bool:
        """Whether a validity scorer is used."""

    @property
    def scorer_parameters(self) -> dict[str, Any]:
        """The parameters of the scorer."""
