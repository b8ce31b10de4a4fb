"""The shipped store is golden data: it freezes the format, and the quantiser with it."""

import filecmp
import json

from flashmoe.store.convert import convert
from flashmoe.store.reader import locate
from flashmoe.store.verify import verify
from flashmoe.text import ChatTemplate
from tests.laws.sources import ROOT

CHECKPOINT = ROOT / "models" / "austen-moe"
QWEN = ROOT / "tests" / "golden" / "qwen3.5.jinja"


def test_converting_the_published_checkpoint_gives_the_shipped_store_byte_for_byte(tmp_path):
    convert(CHECKPOINT, tmp_path / "demo", bits=4)
    shipped, made = locate("demo"), tmp_path / "demo"
    names = sorted(path.name for path in shipped.iterdir())
    assert names == sorted(path.name for path in made.iterdir())
    same, different, errors = filecmp.cmpfiles(shipped, made, names, shallow=False)
    assert (different, errors) == ([], []) and same == names


def test_the_shipped_store_is_whole_and_small():
    report = verify(locate("demo"), against=CHECKPOINT)
    assert not report.faults and report.records_checked == 256
    assert sum(path.stat().st_size for path in locate("demo").iterdir()) < 12 << 20


def test_the_shipped_template_is_qwens_but_thinks_only_when_asked_to():
    """The model was never taught to think: left in an open thought it has no answer to give."""
    tools = json.loads((ROOT / "examples" / "tools.json").read_text())
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": "Where?", "reasoning_content": "It depends."},
        {"role": "user", "content": "In Paris."},
    ]
    ours, qwens = (
        ChatTemplate(path.read_text(), markup=("<|im_start|>", "<|im_end|>", "<think>", "</think>"))
        for path in (locate("demo") / "chat_template.jinja", QWEN)
    )
    for messages, offered in ((talk, None), (talk, tools), (talk[1:2], None)):
        on, off, unsaid = (
            ours.render_text(messages, tools=offered, enable_thinking=thinking)
            for thinking in (True, False, None)
        )
        assert on == qwens.render_text(messages, tools=offered, enable_thinking=True)
        assert off == qwens.render_text(messages, tools=offered, enable_thinking=False)
        assert unsaid == off != on
