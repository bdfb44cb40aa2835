"""One server that the tests of a file share, and clients of it."""

import httpx2
import openai
import pytest

from tests.support import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Three models: one that reasons, one that does not, and one whose words are random."""
    folder = tmp_path_factory.mktemp("run")
    models = [
        serving.serve_model(folder, "sft", search=True),
        serving.serve_model(folder, "plain", direct=True),
        serving.serve_model(folder, "random", serving.random_weights(), search=True),
    ]
    with serving.serving(models, queue=40) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(server):
    with httpx2.Client(base_url=server.root, timeout=serving.TIMEOUT_S) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_page_is_lost(request):
    """After every test, all that was asked for was given back."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        rewards = [m.reward_model for m in server.models if m.reward_model]
        serving.wait_until(lambda: all(serving.pages_used(m) == 0 for m in server.models))
        serving.wait_until(lambda: not any(model.held for model in rewards))
        assert server.desk.gate.inside == 0
