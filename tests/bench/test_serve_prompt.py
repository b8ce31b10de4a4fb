"""What a client of a long prompt hears, told from canned streams."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from tests.bench.conftest import Load


def stream(*lines: str) -> str:
    return "".join(f"{line}\n\n" for line in lines)


def token(cached: int) -> tuple[str, str, str]:
    usage = {"prompt_tokens_details": {"cached_tokens": cached}}
    return (
        f"data: {json.dumps({'choices': [{'text': 'a'}], 'usage': None})}",
        f"data: {json.dumps({'choices': [], 'usage': usage})}",
        "data: [DONE]",
    )


def client(answer: Callable[[list[int]], str]) -> httpx.Client:
    def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=answer(json.loads(request.content)["prompt"]))

    return httpx.Client(base_url="http://test", transport=httpx.MockTransport(reply))


def test_a_client_hears_how_far_its_prompt_is_and_what_was_known(load: Load) -> None:
    module = load("serve_prompt")
    progress = (
        ": queue 1",
        ": prompt 64/1000 tokens, 10 s left",
        ": prompt 900/1000 t",
    )
    with client(lambda _: stream(*progress, *token(512))) as http:
        heard = module.ask(http, "m", "again", list(range(1000)), None)
    assert heard.passed == [64] and heard.cached_tokens == 512 and heard.prompt_tokens == 1000
    assert heard.first_token_s is not None and heard.faults() == []


def test_who_goes_away_hears_no_token(load: Load) -> None:
    module = load("serve_prompt")
    with client(lambda _: stream(": prompt 1/9 tokens", *token(0))) as http:
        heard = module.ask(http, "m", "goes away", [1] * 9, 0.0)
    assert heard.passed == [1] and heard.first_token_s is None


def test_the_same_prompt_comes_again_and_longer(load: Load) -> None:
    module, prompts = load("serve_prompt"), list[list[int]]()

    def answer(prompt: list[int]) -> str:
        prompts.append(prompt)
        return stream(*token(0))

    with client(answer) as http:
        names = [heard.name for heard in module.story(http, "m", 50, 10, 1.0)]
    first, other, again, more = prompts
    assert names == ["goes away", "another", "again", "and more"]
    assert first == again == more[:50] and len(more) == 53 and len(other) == 3
    assert all(0 <= id < 10 for id in more)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"longest_gap_s": 5.5}, "nothing came for 5.5 s"), ({"passed": [2, 1]}, "falls: [2, 1]")],
)
def test_what_no_client_should_see_is_a_fault(load: Load, changed, words) -> None:
    (fault,) = load("serve_prompt").Heard("again", 9, **changed).faults()
    assert fault.startswith("again: ") and words in fault


def test_a_refusal_ends_the_bench(load: Load) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, text='{"error": {"message": "the model m does not exist"}}')

    with (
        httpx.Client(base_url="http://test", transport=httpx.MockTransport(refuse)) as http,
        pytest.raises(SystemExit, match="the model m does not exist"),
    ):
        load("serve_prompt").ask(http, "m", "another", [1], None)
