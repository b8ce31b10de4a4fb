"""The conversation in a real browser: all that a person can do with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tests.apps.serve.page_server import MODEL, MadeUpView, Script
from tests.browser.conftest import PHONE, Visit

Visits = Callable[..., Visit]


def test_a_reply_streams_and_is_drawn(visit: Visits) -> None:
    one = visit()
    one.say("What is a mixture of experts?")
    reply = one.hear()
    assert one.page.locator(".said").inner_text() == "What is a mixture of experts?"
    assert reply.locator(".prose strong").inner_text() == "mixture of experts"
    assert reply.locator("ol > li").count() == 3
    assert reply.locator("tbody td").nth(5).inner_text() == "18.1 GB"
    assert "def forward(x):" in reply.locator("pre code").inner_text()
    assert "214 tokens" in reply.locator(".cost").inner_text()
    assert "256 of 312 prompt tokens kept" in reply.locator(".cost").inner_text()
    assert one.asked == [
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is a mixture of experts?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    said = one.page.locator("#status").text_content()
    assert said.startswith("See [the paper]") and said.endswith("The reply is complete")


def test_escape_stops_a_reply_and_what_there_is_stays(visit: Visits) -> None:
    one = visit()
    one.say("Go on for ever")
    one.until("document.querySelector('.prose')?.textContent.length > 40")
    assert one.page.locator("#stop").is_visible() and not one.page.locator("#send").is_visible()
    one.page.keyboard.press("Escape")
    reply = one.hear()
    assert reply.locator(".ending").inner_text() == "Stopped."
    assert one.page.locator("#send").is_visible()
    one.page.wait_for_timeout(300)
    assert one.server.script.cut_off == 1, "the server still writes"
    text = reply.locator(".prose").inner_text()
    one.page.reload()
    assert one.hear().locator(".prose").inner_text() == text


def test_thinking_is_folded(visit: Visits) -> None:
    one = visit()
    one.say("Please think")
    reply = one.hear()
    thoughts = reply.locator(".thoughts")
    assert not thoughts.is_visible()
    reply.locator(".thinking summary").click()
    assert thoughts.inner_text() == "The user wants a short answer. I weigh two."
    one.say("More")
    one.hear(2)
    assert one.asked[1]["messages"][1]["reasoning_content"].startswith("The user wants")


def test_a_reply_without_an_answer_says_so(visit: Visits) -> None:
    one = visit()
    one.say("only think")
    assert "stopped thinking without an answer" in one.hear().locator(".ending").inner_text()
    one.say("only think, and be short")
    ending = one.hear(2).locator(".ending").inner_text()
    assert ending == "Ended at the limit of tokens, before there was an answer."
    one.say("Hello")
    assert not one.hear(3).locator(".ending").is_visible()


def test_a_call_is_shown_and_its_result_goes_back(visit: Visits) -> None:
    one = visit()
    one.page.get_by_role("button", name="What is the weather in Paris").click()
    reply = one.hear()
    assert reply.locator(".call-head code").inner_text() == "get_weather"
    given = json.loads(reply.locator(".call pre").inner_text())
    assert given == {"city": "Paris", "day": "Monday"}
    (tool,) = one.asked[0]["tools"]
    assert tool["type"] == "function" and tool["function"]["name"] == "get_weather"
    one.page.get_by_label("Result of get_weather").fill('{"sky": "sunny"}')
    one.page.get_by_role("button", name="Give the result").click()
    assert one.hear(2).locator("strong").inner_text() == "sunny"
    _, called, result = one.asked[1]["messages"]
    assert called["tool_calls"][0]["id"] == result["tool_call_id"] == "call_1"
    assert result["content"] == '{"sky": "sunny"}'


def test_again_and_edit_go_back_to_where_they_are(visit: Visits) -> None:
    one = visit()
    one.say("First")
    one.hear()
    one.say("Second")
    one.hear(2)
    one.page.get_by_role("button", name="Again").nth(1).click()
    one.until("document.querySelectorAll('.reply.coming').length === 0")
    one.hear(2)
    assert one.asked[2]["messages"] == one.asked[1]["messages"]
    first = one.page.locator(".turn.user").first
    first.hover()
    first.get_by_role("button", name="Edit").click()
    one.page.get_by_label("Your message").fill("Other")
    one.page.keyboard.press("Enter")
    one.until("document.querySelectorAll('.turn').length === 2")
    one.hear()
    assert one.asked[3]["messages"] == [{"role": "user", "content": "Other"}]


def test_settings_are_sent_as_they_are_set(visit: Visits) -> None:
    one = visit()
    one.page.click("#open-settings")
    one.page.get_by_label("System prompt").fill("Be brief.")
    one.page.get_by_label("Temperature").fill("0.7")
    one.page.get_by_label("Top k").fill("20")
    one.page.get_by_label("Most tokens").fill("64")
    one.page.get_by_label("Thinking").select_option("off")
    one.page.get_by_label("Tools").fill("[{]")
    one.page.get_by_role("button", name="Use these").click()
    assert "not JSON" in one.page.locator("#wrong-tools").inner_text()
    one.page.get_by_label("Tools").fill("")
    one.page.get_by_role("button", name="Use these").click()
    assert "temperature 0.7" in one.page.locator("#summary").inner_text()
    one.say("Hello")
    one.hear()
    (body,) = one.asked
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.7, 20, 64)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "top_p" not in body and "tools" not in body


def test_what_fails_is_said_and_can_be_tried_again(visit: Visits) -> None:
    one = visit()
    one.say("fail please")
    reply = one.hear()
    assert reply.locator(".prose").inner_text() == "It begins well"
    assert reply.locator(".ending.failed").inner_text() == "A record could not be read."
    assert reply.get_by_role("button", name="Try again").is_visible()
    one.say("overloaded")
    assert one.hear(2).locator(".failed").inner_text() == "The queue is full. Try again in 7 s."
    one.forgive("429")


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(visit: Visits) -> None:
    one = visit(Script(MadeUpView(12, 48, 4), key="secret", pause_s=0.001))
    one.page.get_by_role("textbox", name="Key").fill("secret")
    one.page.get_by_role("button", name="Enter").click()
    one.until(f"document.querySelector('#model').textContent === '{MODEL}'")
    one.say("Hello")
    one.hear()
    assert "secret" not in one.page.evaluate("JSON.stringify(localStorage)")
    one.forgive("401")


def test_queue_and_prompt_are_told(visit: Visits) -> None:
    one = visit(Script(MadeUpView(12, 48, 4), pause_s=0.1))
    one.say("queue, then a long prompt")
    waiting = one.page.locator(".waiting")
    one.page.get_by_text("Waiting: 3 before this one").first.wait_for()
    told = re.compile("Reading the prompt: [1-9][0-9,]* of 16,000 tokens")
    one.page.get_by_text(told).first.wait_for()
    assert "61.2 tok/s" in waiting.inner_text() and "left" in waiting.inner_text()
    assert one.page.get_by_role("progressbar", name="Prompt read").is_visible()
    one.page.keyboard.press("Escape")
    one.hear()


def test_conversations_stay_can_be_changed_between_and_deleted(visit: Visits) -> None:
    one = visit()
    one.say("About rivers")
    one.hear()
    one.page.get_by_role("button", name="New conversation").click()
    assert one.page.locator(".welcome").is_visible()
    one.say("About hills")
    one.hear()
    one.page.reload()
    entries = one.page.locator("#list .entry")
    assert entries.all_inner_texts() == ["About hills", "About rivers"]
    entries.nth(1).click()
    assert one.page.locator(".said").inner_text() == "About rivers"
    one.page.locator("#list li").nth(1).hover()
    one.page.get_by_role("button", name="Delete About rivers").click()
    assert entries.all_inner_texts() == ["About hills"]
    one.page.get_by_role("button", name="Undo").click()
    assert sorted(entries.all_inner_texts()) == ["About hills", "About rivers"]


def test_a_reply_that_is_left_is_kept_where_it_belongs(visit: Visits) -> None:
    one = visit()
    one.say("Go on for ever")
    one.until("document.querySelector('.prose')?.textContent.length > 40")
    one.page.get_by_role("button", name="New conversation").click()
    one.say("Another")
    one.hear()
    assert len(one.asked[1]["messages"]) == 1
    one.page.get_by_role("button", name="Go on for ever", exact=True).click()
    assert one.hear().locator(".ending").inner_text() == "Stopped."


def test_text_is_never_markup(visit: Visits) -> None:
    one = visit()
    one.say("hostile <b>bold</b>")
    reply = one.hear()
    assert one.page.locator(".said").inner_text() == "hostile <b>bold</b>"
    assert reply.locator("img, script, iframe, .prose b").count() == 0
    links = reply.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert links == ["https://example.org/pixel.png"]
    assert '<img src=x onerror="alert(1)">' in reply.locator(".prose").inner_text()


def test_a_stored_thing_that_is_no_conversation_is_left_alone(visit: Visits) -> None:
    one = visit()
    one.page.evaluate(
        """() => {
          localStorage.setItem("flashmoe.conversation.1", "{nonsense");
          localStorage.setItem("flashmoe.conversation.2", '{"id": "2", "messages": [{}]}');
          localStorage.setItem("flashmoe.settings", "[");
        }"""
    )
    one.page.reload()
    one.say("Hello")
    one.hear()
    assert one.page.locator("#list .entry").count() == 1
    assert one.page.evaluate("localStorage.length") >= 4


def test_on_a_phone(visit: Visits) -> None:
    one = visit(size=PHONE, has_touch=True, is_mobile=True)
    one.say("What is a mixture of experts?")
    one.hear()
    width = "document.documentElement.scrollWidth"
    assert one.page.evaluate(width) == PHONE["width"]
    assert not one.page.locator("#experts").is_visible()
    one.page.click("#open-experts")
    assert one.page.locator("#map").is_visible()
    assert one.page.evaluate(width) == PHONE["width"]
    one.page.keyboard.press("Escape")
    assert not one.page.locator("#experts").is_visible()
    one.page.click("#open-conversations")
    one.page.get_by_role("button", name="New conversation").click()
    assert one.page.locator(".welcome").is_visible()
    assert not one.page.locator("#conversations").is_visible()
