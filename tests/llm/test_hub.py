"""A hub that does not answer: an end, in one line."""

import socket
import threading

import huggingface_hub
import pytest
from huggingface_hub import constants

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.model_files import find_language_model


@pytest.fixture
def silent(monkeypatch):
    """A hub that accepts connections and says nothing; how many there were."""
    server, accepted = socket.create_server(("127.0.0.1", 0)), []

    def accept():
        while True:
            try:
                accepted.append(server.accept()[0])
            except OSError:  # closed
                return

    threading.Thread(target=accept, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    huggingface_hub.close_session()
    yield accepted
    server.close()
    for connection in accepted:
        connection.close()
    huggingface_hub.close_session()


@pytest.mark.parametrize("times", [1, 2])
def test_a_hub_that_accepts_and_never_answers_is_given_up(silent, times):
    for _ in range(times):  # the second time, its client is there already
        with pytest.raises(
            UserError,
            match=r"^language model 'some/model' cannot be downloaded: http://127.0.0.1:\d+ did "
            "not answer for 0.2 s; try again later, name a folder, or set HF_HUB_ETAG_TIMEOUT",
        ):
            find_language_model("some/model")
    assert silent
