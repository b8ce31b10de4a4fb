"""The flags of ``chat``: those of its own, and the command that takes them.

Owns names and help; ``program`` does the work, imported when it is called.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

from flashmoe.apps import flags
from flashmoe.options import Runtime, Sampling

MAX_TOKENS = 2048
"""A reply ends here unless ``--max-tokens`` says otherwise: Ctrl-C is at hand, and an answer may
be long."""


_words = partial(flags.option, "Prompt")

SystemFile: TypeAlias = Annotated[
    Path | None,
    _words("The same, from a file.", "--system-file", metavar="FILE"),
]
TypedTools: TypeAlias = Annotated[
    Path | None,
    _words(
        "Tools whose results you type when the model calls them: a JSON list in OpenAI's form.",
        "--tools",
    ),
]
OwnTools: TypeAlias = Annotated[
    list[str] | None,
    _words(
        "Switch on a tool that comes with the chat: `calculator`, `read_file` (below the working "
        "directory) or `shell` (asks before each command); may be given again.",
        "--tool",
        metavar="NAME",
    ),
]
ThinkBudget: TypeAlias = Annotated[
    int | None,
    _words(
        "Let the model reason, and close the reasoning after so many tokens.",
        "--think-budget",
        metavar="TOKENS",
        min=1,
        show_default="as many as it takes",
    ),
]
ConversationName: TypeAlias = Annotated[
    str | None,
    _words(
        "Keep the conversation under this name, and go on with it where it was left; see "
        "`/sessions`.",
        "--session",
        metavar="NAME",
    ),
]


def chat(
    store: flags.Store,
    session: ConversationName = None,
    system: flags.System = None,
    system_file: SystemFile = None,
    tool: OwnTools = None,
    tools: TypedTools = None,
    think: flags.Think = None,
    think_budget: ThinkBudget = None,
    max_tokens: flags.MaxTokens = MAX_TOKENS,
    temperature: flags.Temperature = None,
    top_p: flags.TopP = None,
    top_k: flags.TopK = None,
    min_p: flags.MinP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    presence_penalty: flags.PresencePenalty = Sampling.presence_penalty,
    frequency_penalty: flags.FrequencyPenalty = Sampling.frequency_penalty,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    experts_per_token: flags.ExpertsPerToken = None,
    ram: flags.Ram = None,
    vram: flags.Vram = None,
    context: flags.Context = None,
    slots: flags.Slots = None,
    kv: flags.Kv = flags.KV,
    prefix_cache: flags.KeptPrefixes = None,
    prefix_cache_size: flags.PrefixSize = None,
    no_prefix_cache: flags.NoPrefixCache = False,
    threads: flags.Threads = None,
    chunk_tokens: flags.ChunkTokens = Runtime.chunk_tokens,
    io_threads: flags.IoThreads = Runtime.io_threads,
    hints: flags.Hints = Runtime.hints,
    io: flags.HowRead = Runtime.io,
    profile: flags.Profile = Runtime.profile,
    store_dirs: flags.StoreDirs = None,
    kernels: flags.Kernels = "auto",
) -> int:
    """Talk with a store: streamed Markdown, tools, conversations that are kept and resumed.

    `/help` lists what can be typed besides. Without a terminal each line of standard input is a
    turn, and each reply plain text on standard output.
    """
    given = locals()
    from flashmoe.apps.chat.program import chat
    from flashmoe.apps.chat.request import request_of

    return chat(request_of(given))
