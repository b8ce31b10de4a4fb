"""What clients of other servers send to OpenAI's paths, beside that API's own parameters.

Owns the names that are known here without being honoured: each is taken where it asks for what
happens anyway, and refused otherwise, with what to give instead. What is honoured is
``sampling_fields``'.
"""

from __future__ import annotations

from collections.abc import Mapping

from flashmoe.apps.serve.fields import Kind, Only, Refused

_ENDS = "the model decides where a reply ends: leave it out"
_TEXT = "replies are the model's text without its marks: leave it out"
_DRAWN = "one token is drawn after the other: leave it out"
_SCHEMA = Refused("give response_format with a json_schema instead")
_MOST = Refused("give max_tokens instead")

COMPLETING: Mapping[str, Kind] = {
    "best_of": Only(1, "one reply a request is what there is here: ask again for another"),
    "cache_prompt": Only(True, "beginnings of prompts are kept in any case: leave it out"),
    "ignore_eos": Only(False, _ENDS),
    "include_stop_str_in_output": Only(False, "a reply ends before the stop string: leave it out"),
    "keep_alive": Refused("the model stays as long as the server runs: leave it out"),
    "length_penalty": Only(1, _DRAWN),
    "min_tokens": Only(0, _ENDS),
    "n_predict": _MOST,
    "num_predict": _MOST,
    "options": Refused("give each of them by itself, such as temperature and top_k"),
    "repeat_penalty": Refused("give repetition_penalty instead"),
    "skip_special_tokens": Only(True, _TEXT),
    "spaces_between_special_tokens": Only(True, _TEXT),
    "use_beam_search": Only(False, _DRAWN),
}
"""Of vLLM, llama.cpp and Ollama, wherever text is written."""

_THINKING = Refused("give reasoning_effort or chat_template_kwargs.enable_thinking instead")
_PATTERN = "give guided_regex instead, with the choices as its alternatives"

CHATTING: Mapping[str, Kind] = {
    **COMPLETING,
    "add_generation_prompt": Only(True, "a reply always follows: leave it out"),
    "continue_final_message": Only(False, "a reply is always a message of its own: leave it out"),
    "echo": Only(False, "the prompt comes back from /v1/completions alone: leave it out"),
    "enable_thinking": _THINKING,
    "format": _SCHEMA,
    "grammar": Refused("give response_format or guided_regex instead"),
    "guided_choice": Refused(_PATTERN),
    "guided_grammar": Refused("give response_format or guided_regex instead"),
    "guided_json": _SCHEMA,
    "json_schema": _SCHEMA,
    "reasoning": Refused("give reasoning_effort instead"),
    "structured_outputs": Refused("give response_format or guided_regex instead"),
    "think": _THINKING,
    "thinking": _THINKING,
}
"""The same, and what belongs to conversations and their replies."""
