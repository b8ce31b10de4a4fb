"""The flags of the command line, declared once and shared by the commands.

Owns names, help and where a default is shown from: ``options`` has the defaults, a store its own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from flashmoe.options import DEFAULT_CONTEXT_TOKENS, DEFAULT_DISK_BYTES, Budget, Io

MAX_TOKENS = 512
"""A reply on the command line ends here unless ``--max-tokens`` says otherwise."""

PROMPT_TOKENS, GEN_TOKENS, REPEAT = 512, 128, 3
"""What ``bench`` measures unless it is told otherwise."""

LOSSY_KV = {
    "bf16": "keys and values are rounded to bfloat16",
    "int8": "keys and values are rounded to 8 bits, with a scale a token and head",
}
"""What is said at start of a form that changes more than the default does."""

PREFIX_SIZE = f"{DEFAULT_DISK_BYTES >> 30}GiB"

_OWN = "the store's own"


def option(panel: str, help: str, *names: str, **more: Any) -> Any:
    """A flag under a heading of ``--help``, for those that one command alone has."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


_words = partial(option, "Prompt")
_sampling = partial(option, "Sampling")
_memory = partial(option, "Memory")
_work = partial(option, "How the work is done (never changes the answer)")
_measured = partial(option, "What is measured")
_output = partial(option, "Output and files")

Store: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="A store's directory, or `demo` for the one that is shipped."
    ),
]

# --- what is said
Prompt: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT", help="What to say; `-`, or none with a pipe, reads standard input."
    ),
]
Raw: TypeAlias = Annotated[
    bool, _words("Continue the prompt as it stands, without the chat template.", "--raw")
]
System: TypeAlias = Annotated[
    str | None, _words("A system message before the prompt.", "--system", metavar="TEXT")
]
Tools: TypeAlias = Annotated[
    Path | None,
    _words("Tools that the model may call: a JSON list in OpenAI's form.", "--tools"),
]
Think: TypeAlias = Annotated[
    bool | None,
    _words(
        "Let the model reason before it answers, where its template has a switch for it "
        "(enable_thinking).",
        "--think/--no-think",
        show_default="the template's own",
    ),
]

# --- how the next token is drawn
MaxTokens: TypeAlias = Annotated[
    int, _sampling("End the reply after so many tokens.", "--max-tokens")
]
Temperature: TypeAlias = Annotated[
    float | None,
    _sampling("Flatter above 1, sharper below; 0 is greedy.", "--temperature", show_default=_OWN),
]
TopP: TypeAlias = Annotated[
    float | None,
    _sampling("Keep the likeliest tokens that make up this mass.", "--top-p", show_default=_OWN),
]
TopK: TypeAlias = Annotated[
    int | None,
    _sampling("Keep so many of the likeliest tokens; 0 is all.", "--top-k", show_default=_OWN),
]
MinP: TypeAlias = Annotated[
    float | None,
    _sampling(
        "Keep tokens at least this likely relative to the best.", "--min-p", show_default=_OWN
    ),
]
RepetitionPenalty: TypeAlias = Annotated[
    float | None,
    _sampling(
        "Divide the logits of tokens seen before; 1 is off.",
        "--repetition-penalty",
        show_default=_OWN,
    ),
]
PresencePenalty: TypeAlias = Annotated[
    float,
    _sampling("Subtract from tokens that the reply has already.", "--presence-penalty"),
]
FrequencyPenalty: TypeAlias = Annotated[
    float,
    _sampling("The same, for each time the reply has them.", "--frequency-penalty"),
]
Seed: TypeAlias = Annotated[
    int | None,
    _sampling("Makes a sampled reply repeatable.", "--seed", show_default="another every time"),
]
Stop: TypeAlias = Annotated[
    list[str] | None,
    _sampling("End the reply before this text; may be given again.", "--stop", metavar="TEXT"),
]
LogProbs: TypeAlias = Annotated[
    int | None,
    _sampling(
        "Report each token's log-probability and so many alternatives, on standard error.",
        "--logprobs",
        metavar="N",
    ),
]
ExpertsPerToken: TypeAlias = Annotated[
    int | None,
    _sampling(
        "LOSSY: choose so many experts a token; answers differ from the published model.",
        "--experts-per-token",
        metavar="K",
        show_default="the checkpoint's own",
    ),
]

# --- memory
Ram: TypeAlias = Annotated[
    str | None,
    _memory(
        "Bound on the peak memory of the process: `8GiB`, `500MB`, `floor` (the smallest that "
        "works) or `recommended`.",
        "--ram",
        metavar="SIZE",
        show_default="recommended",
    ),
]
Vram: TypeAlias = Annotated[
    str | None,
    _memory(
        "Bound on what is taken of the GPU's memory, with --kernels cuda: `8GiB`, `500MB`.",
        "--vram",
        metavar="SIZE",
        show_default="what is free there, less a margin",
    ),
]
Context: TypeAlias = Annotated[
    int | None,
    _memory(
        "The longest timeline, prompt and reply together.",
        "--context",
        metavar="TOKENS",
        show_default=f"the model's limit, at most {DEFAULT_CONTEXT_TOKENS}",
    ),
]
PrefixDirectory: TypeAlias = Annotated[
    str | None,
    _memory(
        "Keep here what prompts and replies have come to, and begin there when one comes again, or "
        "another that begins alike; it counts in --ram. It says what was said: it is made for this "
        "user alone, and may be deleted at any time. Where an earlier prompt or reply ended, going "
        "on may differ in the last digits from a prompt in one piece.",
        "--prefix-cache",
        metavar="DIR",
    ),
]
KeptPrefixes: TypeAlias = Annotated[
    str | None,
    _memory(
        "Where beginnings of conversations are kept, so that the next turn does not pass all of "
        "them again; it counts in --ram. It says what was said: it is made for this user alone, "
        "and may be deleted at any time.",
        "--prefix-cache",
        metavar="DIR",
        show_default="~/.cache/flashmoe/prefixes",
    ),
]
"""Of the commands that have a prefix cache unless they are told otherwise."""
NoPrefixCache: TypeAlias = Annotated[
    bool,
    _memory(
        "Do without the prefix cache: a turn passes again what the timeline in memory cannot go on "
        "from.",
        "--no-prefix-cache",
    ),
]
PrefixSize: TypeAlias = Annotated[
    str | None,
    _memory(
        "All that --prefix-cache may take on disk; what was used longest ago leaves.",
        "--prefix-cache-size",
        metavar="SIZE",
        show_default=PREFIX_SIZE,
    ),
]
Slots: TypeAlias = Annotated[
    int | None,
    _memory("Experts kept in memory at once.", "--slots", show_default="what the budget holds"),
]

KvKind: TypeAlias = Literal["f32", "f16", "bf16", "int8"]
KV: KvKind = Budget.kv  # type: ignore[assignment]
Kv: TypeAlias = Annotated[
    KvKind,
    _memory(
        "How keys and values are held: as float16 (f16), as computed (f32) in twice the memory, or "
        "LOSSY: with fewer bits (bf16), or in half of it (int8).",
        "--kv",
    ),
]

# --- how the work is done
Threads: TypeAlias = Annotated[
    int | None,
    _work("Threads that compute.", "--threads", show_default="one a processor it may run on"),
]
ChunkTokens: TypeAlias = Annotated[
    int | None,
    _work(
        "Prompt tokens that pass a layer together; a multiple of 64 never changes the answer.",
        "--chunk-tokens",
        show_default="what reads least within the budget",
    ),
]
IoThreads: TypeAlias = Annotated[
    int | None,
    _work(
        "Reads under way at once, from each drive.",
        "--io-threads",
        show_default="the best for this disk; measured once, and kept in "
        "~/.cache/flashmoe/devices.json",
    ),
]
Hints: TypeAlias = Annotated[
    bool, _work("Start reads before they are waited for, some on a guess.", "--hints/--no-hints")
]
HowRead: TypeAlias = Annotated[
    Io,
    _work(
        "How experts are read and kept: `direct`, in slots, past the page cache where the file "
        "system can; `buffered`, in slots, through the page cache; `os`, by the page cache alone, "
        "which gets the memory that slots would have.",
        "--io",
    ),
]
Profile: TypeAlias = Annotated[
    bool,
    _work(
        "Keep beside the store (usage.json) how often each expert is chosen, and read the "
        "likeliest ones ahead at the next start.",
        "--profile/--no-profile",
    ),
]
StoreDirs: TypeAlias = Annotated[
    list[Path] | None,
    _work(
        "A directory, on another drive perhaps, with a part or a copy of the store (see `flashmoe "
        "spread`); may be given again. All are read at once.",
        "--store-dir",
        metavar="DIR",
    ),
]
Kernels: TypeAlias = Annotated[
    str,
    _work(
        "The arithmetic: native (cpu), numpy (reference), or that of an NVIDIA GPU (cuda; cuda:1 "
        "is the second one); `auto` asks for no GPU.",
        "--kernels",
        metavar="auto|cpu|reference|cuda[:N]",
    ),
]

# --- what is measured
PromptTokens: TypeAlias = Annotated[
    int, _measured("Length of the random prompts.", "--prompt-tokens", min=1)
]
GenTokens: TypeAlias = Annotated[int, _measured("Length of the replies.", "--gen-tokens", min=2)]
Cold: TypeAlias = Annotated[
    bool,
    _measured(
        "Begin each repetition with an empty cache, and drop the store from the page cache.",
        "--cold",
    ),
]
Repeat: TypeAlias = Annotated[
    int, _measured("Repetitions, of which the medians are taken.", "--repeat", min=1)
]

# --- output and files
Timing: TypeAlias = Annotated[
    bool, _output("Print where the time went, a row a layer, a column a phase.", "--timing")
]
TraceOut: TypeAlias = Annotated[
    Path | None,
    _output(
        "Write the routing log here (see `flashmoe trace`); implies --no-profile.", "--trace-out"
    ),
]
Save: TypeAlias = Annotated[Path | None, _output("Keep the conversation in this file.", "--save")]
Load: TypeAlias = Annotated[
    Path | None, _output("Go on with a conversation that --save kept.", "--load")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]
Stats: TypeAlias = Annotated[
    Literal["text", "json"], _output("The form of the last line.", "--stats")
]
