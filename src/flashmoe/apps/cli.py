"""The command line: what each command takes, and what becomes of a refusal.

Owns argument definitions, dispatch and exit codes; the work of a command is in the module of its
name, imported when it is called, so that ``--help`` is quick. A user's mistake is one line on
standard error: exit code 2 for input, 1 for the rest. A traceback is a bug.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flashmoe import __version__
from flashmoe.apps import flags, prefixes, terminal
from flashmoe.apps.chat.flags import chat
from flashmoe.apps.eval.flags import EPILOG, evaluate
from flashmoe.apps.footer import KEYS, VRAM_KEYS
from flashmoe.apps.serve.flags import serve
from flashmoe.errors import FlashMoeError, InputError
from flashmoe.options import Runtime, Sampling

EXIT_CODES = (
    "Exit codes: 0 done; 1 refused (the store, the budget, the machine, a saved session), or "
    "`verify` found faults; 2 a flag, an argument or a prompt that cannot be honoured; 130 ended "
    "by Ctrl-C."
)


def _told(keys: Mapping[str, str]) -> str:
    return ", ".join(f"`{key}` ({meaning})" for key, meaning in keys.items())


STATS = (
    f"`--stats json` writes one object: {_told(KEYS)}; where a GPU computes also {_told(VRAM_KEYS)}"
)

app = typer.Typer(
    name="flashmoe",
    epilog=EXIT_CODES,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        terminal.write(f"flashmoe {__version__}\n")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Mixture-of-Experts language models far larger than memory, streamed from SSD."""


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A published checkpoint: safetensors (HF or MLX), or GGUF."
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="Directory of the store; made if need be.")
    ],
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="2|3|4|5|6|8|16",
            help="Bits of a weight; 16 keeps the published type.",
            show_default="4; 16 for an unquantised GGUF; a quantised source stays as it is",
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(metavar="32|64|128", help="Weights that share a scale.", show_default="64"),
    ] = None,
    trunk_bits: Annotated[
        int | None,
        typer.Option(
            metavar="2|3|4|5|6|8|16",
            help="Bits of the resident weights; the router has at least 8.",
            show_default="as --bits, at least 4",
        ),
    ] = None,
    slices: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Slices that a dense model's feed-forward part is streamed in.",
            show_default="8",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start over where a store lies already.")
    ] = False,
) -> None:
    """Convert a published checkpoint to a store.

    May be killed at any moment: the same command goes on where it stopped.
    """
    from flashmoe.apps.convert import convert

    convert(
        source,
        destination,
        bits=bits,
        group=group,
        trunk_bits=trunk_bits,
        slices=slices,
        force=force,
    )


@app.command()
def verify(
    store: flags.Store,
    against: Annotated[
        Path | None,
        typer.Option(metavar="SRC", help="Compare with the checkpoint it was made from, too."),
    ] = None,
    store_dirs: flags.StoreDirs = None,
) -> int:
    """Check a store against its checksums.

    Lists every fault; the exit code is 1 if there is one.
    """
    from flashmoe.apps.convert import verify

    return verify(store, against, tuple(store_dirs or ()))


@app.command()
def spread(
    store: flags.Store,
    directories: Annotated[
        list[Path],
        typer.Option(
            "--store-dir",
            metavar="DIR",
            help="A directory for a part, on a drive of its own; made if need be; given for each.",
        ),
    ],
    mirror: Annotated[
        bool,
        typer.Option("--mirror", help="Put all experts into each directory, not an equal share."),
    ] = False,
) -> None:
    """Spread a store's experts over several drives, to be read at once with `--store-dir`.

    The store stays as it is. Where the parts have all experts, it may lose its own layer files
    (`layer-*.safetensors`). May be killed at any moment: the same command goes on where it
    stopped, and mends a part that was damaged.
    """
    from flashmoe.apps.spread import spread

    spread(store, directories, mirror=mirror)


@app.command()
def plan(
    store: flags.Store,
    ram: flags.Ram = None,
    vram: flags.Vram = None,
    context: flags.Context = None,
    slots: flags.Slots = None,
    experts_per_token: flags.ExpertsPerToken = None,
    kv: flags.Kv = flags.KV,
    chunk_tokens: flags.ChunkTokens = Runtime.chunk_tokens,
    io: flags.HowRead = Runtime.io,
    store_dirs: flags.StoreDirs = None,
    prefix_cache: flags.PrefixDirectory = None,
    kernels: flags.Kernels = "auto",
    as_json: flags.Json = False,
) -> None:
    """Show how memory would be divided: floor, recommended size, slots, and what binds.

    With `--kernels cuda` also the GPU's.
    """
    from flashmoe.apps.plan import plan
    from flashmoe.apps.request import Limits, kept_in, vram_of

    limits = Limits(ram, context, slots, experts_per_token, kv, vram_of(vram, kernels))
    runtime = Runtime(chunk_tokens=chunk_tokens, io=io, store_dirs=tuple(store_dirs or ()))
    kept = kept_in(prefix_cache)
    plan(store, limits, runtime, kernels, prefix_cache=kept, as_json=as_json)


@app.command(
    epilog=f"{STATS}; with `--logprobs` also `logprobs` (an entry a token), with `--store-dir` "
    "`drives` (for each its directories, reads, those that failed, and bytes read)."
)
def run(
    store: flags.Store,
    prompt: flags.Prompt = None,
    raw: flags.Raw = False,
    system: flags.System = None,
    tools: flags.Tools = None,
    think: flags.Think = None,
    max_tokens: flags.MaxTokens = flags.MAX_TOKENS,
    temperature: flags.Temperature = None,
    top_p: flags.TopP = None,
    top_k: flags.TopK = None,
    min_p: flags.MinP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    presence_penalty: flags.PresencePenalty = Sampling.presence_penalty,
    frequency_penalty: flags.FrequencyPenalty = Sampling.frequency_penalty,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    logprobs: flags.LogProbs = None,
    experts_per_token: flags.ExpertsPerToken = None,
    ram: flags.Ram = None,
    vram: flags.Vram = None,
    context: flags.Context = None,
    slots: flags.Slots = None,
    kv: flags.Kv = flags.KV,
    prefix_cache: flags.PrefixDirectory = None,
    prefix_cache_size: flags.PrefixSize = None,
    threads: flags.Threads = None,
    chunk_tokens: flags.ChunkTokens = Runtime.chunk_tokens,
    io_threads: flags.IoThreads = Runtime.io_threads,
    hints: flags.Hints = Runtime.hints,
    io: flags.HowRead = Runtime.io,
    profile: flags.Profile = Runtime.profile,
    store_dirs: flags.StoreDirs = None,
    kernels: flags.Kernels = "auto",
    timing: flags.Timing = False,
    trace_out: flags.TraceOut = None,
    save: flags.Save = None,
    load: flags.Load = None,
    stats: flags.Stats = "text",
) -> int:
    """Reply to a prompt, streamed. Ends with a line of figures on standard error.

    The prompt goes through the store's chat template; `--raw` continues it as it stands. What is
    written is the model's own text, with its marks of reasoning and calls; control characters are
    shown as signs on a terminal alone. Calls of `--tools` are valid by their schemas.
    """
    given = locals()
    from flashmoe.apps.request import request_of
    from flashmoe.apps.run import run

    return run(request_of(given))


app.command()(chat)
app.command()(serve)
app.command("eval", epilog=EPILOG)(evaluate)
app.add_typer(prefixes.commands)


@app.command()
def bench(
    store: flags.Store,
    prompt_tokens: flags.PromptTokens = flags.PROMPT_TOKENS,
    gen_tokens: flags.GenTokens = flags.GEN_TOKENS,
    ram: flags.Ram = None,
    vram: flags.Vram = None,
    experts_per_token: flags.ExpertsPerToken = None,
    kv: flags.Kv = flags.KV,
    cold: flags.Cold = False,
    repeat: flags.Repeat = flags.REPEAT,
    threads: flags.Threads = None,
    chunk_tokens: flags.ChunkTokens = Runtime.chunk_tokens,
    io_threads: flags.IoThreads = Runtime.io_threads,
    hints: flags.Hints = Runtime.hints,
    io: flags.HowRead = Runtime.io,
    store_dirs: flags.StoreDirs = None,
    kernels: flags.Kernels = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON line alone.")] = False,
) -> None:
    """Measure prompt and decode speed, and the share of what disk and memory allow.

    Reads the store's own files and an array in memory first, with `--kernels cuda` also copies to
    the GPU and within its memory, then replies to random prompts.
    The usage profile is neither used nor kept. The last line is a JSON object.
    """
    from flashmoe.apps.bench import Request, bench
    from flashmoe.apps.places import device_cache
    from flashmoe.apps.request import vram_of

    # Random prompts say nothing about a user's, and what is measured should not depend on them.
    runtime = Runtime(
        threads,
        chunk_tokens,
        hints,
        io=io,
        io_threads=io_threads,
        device_cache=device_cache(),
        profile=False,
        store_dirs=tuple(store_dirs or ()),
    )
    request = Request(
        store,
        prompt_tokens,
        gen_tokens,
        ram,
        experts_per_token,
        cold,
        repeat,
        kernels,
        runtime,
        kv,
        vram_of(vram, kernels),
    )
    bench(request, as_json=as_json)


@app.command()
def trace(
    log: Annotated[
        Path, typer.Argument(metavar="LOG", help="What `flashmoe run --trace-out` wrote.")
    ],
    slots: Annotated[
        int | None,
        typer.Option(
            help="Replay the log through a cache of so many slots.",
            min=1,
            show_default="the log's own, else 10, 17, 25 and 50 % of all experts",
        ),
    ] = None,
    record_bytes: Annotated[
        str | None,
        typer.Option(help="Size of an expert, as 6MiB.", show_default="the log's own"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw a heat map (layer by expert) to this PNG.")
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Analyse a routing log: frequency, coverage, reuse, overlap, and misses of a cache."""
    from flashmoe.apps.trace import trace

    trace(log, slots, record_bytes, plot, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code of the process."""
    terminal.open_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with terminal.logged():
            return app(given or ["--help"], prog_name="flashmoe", standalone_mode=False) or 0
    except InputError as error:
        return _refuse(str(error), 2)
    except FlashMoeError as error:
        return _refuse(str(error), 1)
    except typer.TyperException as error:  # a flag or argument that does not exist or fit
        return _refuse(error.format_message(), error.exit_code)


def _refuse(message: str, code: int) -> int:
    terminal.note(f"error: {' '.join(message.split())}")
    return code
