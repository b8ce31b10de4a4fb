"""Parameters of other servers: what changes nothing is taken, the rest is refused with the mend."""

import pytest

from flashmoe.apps.serve import openai_chat, openai_completions
from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.fields import Only
from flashmoe.apps.serve.openai_foreign import CHATTING, COMPLETING

READERS = {
    "chat": (
        openai_chat.read,
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
        CHATTING,
    ),
    "completions": (openai_completions.read, {"model": "m", "prompt": "Hi"}, COMPLETING),
}
EACH = [(path, name) for path, (_, _, table) in READERS.items() for name in table]


@pytest.mark.parametrize(("path", "name"), EACH)
def test_each_is_taken_without_effect_or_refused_with_the_mend(path, name):
    read, body, table = READERS[path]
    kind = table[name]
    if isinstance(kind, Only):
        plain, asked = read(body), read({**body, name: kind.value})
        assert (asked.turn, asked.sampling) == (plain.turn, plain.sampling)
    with pytest.raises(BadRequest) as caught:
        read({**body, name: "else"})
    refusal = caught.value
    assert refusal.param == name and refusal.message.startswith(f"{name} is ")
    assert any(word in refusal.message for word in ("give", "leave it out", "ask again"))
