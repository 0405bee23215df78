"""What the errors of rollout servers say."""

from trainers.vllm.errors import ServerLost


def test_the_address_of_a_server_is_shown_without_its_password() -> None:
    error = ServerLost.of("http://me:pw@host:8000", "does not answer", "refused")
    assert error.what == "the rollout server http://***@host:8000 does not answer: refused"
    assert "pw" not in str(error)
