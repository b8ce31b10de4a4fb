"""The flags of ``serve``: those of its own, and the command that takes them.

Owns names and help; ``command`` does the work, imported when it is called.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, TypeAlias

from flashmoe.apps import flags
from flashmoe.options import Runtime

HOST, PORT = "127.0.0.1", 8080
REQUEST_S, WRITE_S, IDLE_S, GRACE_S = 3600.0, 30.0, 30.0, 30.0
QUEUE, CONNECTIONS = 128, 256
MAX_BODY = "4MiB"


_where = partial(flags.option, "Where, and for whom")
_bound = partial(flags.option, "Limits of a request")

Host: TypeAlias = Annotated[
    str,
    _where("Address to listen at; one that others can reach needs an API key.", "--host"),
]
Port: TypeAlias = Annotated[
    int, _where("Port to listen at; 0 takes a free one.", "--port", min=0, max=65535)
]
ApiKey: TypeAlias = Annotated[
    str | None,
    _where(
        "What clients must send (Bearer or x-api-key). Better in FLASHMOE_API_KEY, since other "
        "users of this machine can read command lines.",
        "--api-key",
        metavar="KEY",
        show_default="FLASHMOE_API_KEY, where that is set",
    ),
]
CorsOrigin: TypeAlias = Annotated[
    list[str] | None,
    _where(
        "Pages of this origin (https://example.org; `*` for all) may ask from a browser; may be "
        "given again.",
        "--cors-origin",
        metavar="ORIGIN",
    ),
]
Proxy: TypeAlias = Annotated[
    list[str] | None,
    _where(
        "Address or network (10.0.0.0/8) of a proxy in front: its X-Forwarded-For says whose a "
        "request is; may be given again.",
        "--proxy",
        metavar="ADDRESS",
    ),
]
ModelName: TypeAlias = Annotated[
    str | None,
    _where(
        "What the model goes by.", "--model-name", metavar="NAME", show_default="the directory's"
    ),
]
AnyModel: TypeAlias = Annotated[
    bool,
    _where(
        "Serve the model whatever model is asked for; otherwise other names are refused.",
        "--any-model",
    ),
]
Think: TypeAlias = Annotated[
    bool | None,
    _where(
        "Whether the model reasons before it answers a request that does not say, where its "
        "template has a switch for it (enable_thinking).",
        "--think/--no-think",
        show_default="the template's own",
    ),
]
MaxBody: TypeAlias = Annotated[
    str,
    _bound(
        "The longest body of a request. Memory for several is set aside, within the budget.",
        "--max-body",
        metavar="SIZE",
    ),
]
Connections: TypeAlias = Annotated[
    int, _bound("So many connections may be open at once.", "--connections", min=1, max=65536)
]
Queue: TypeAlias = Annotated[
    int,
    _bound(
        "So many requests may wait, half of them from one address.", "--queue", min=1, max=65536
    ),
]
RequestTimeout: TypeAlias = Annotated[
    float,
    _bound("Seconds that a request may take, its wait included.", "--request-timeout", min=0.01),
]
WriteTimeout: TypeAlias = Annotated[
    float,
    _bound("Seconds that a client may leave what was sent unread.", "--write-timeout", min=0.01),
]
IdleTimeout: TypeAlias = Annotated[
    float,
    _bound("Seconds that a connection may stay without a request.", "--idle-timeout", min=0.01),
]
Grace: TypeAlias = Annotated[
    float,
    _bound("Seconds that a reply under way gets when the server is stopped.", "--grace", min=0),
]


def serve(
    store: flags.Store,
    host: Host = HOST,
    port: Port = PORT,
    api_key: ApiKey = None,
    cors_origin: CorsOrigin = None,
    proxy: Proxy = None,
    model_name: ModelName = None,
    any_model: AnyModel = False,
    think: Think = None,
    max_body: MaxBody = MAX_BODY,
    connections: Connections = CONNECTIONS,
    queue: Queue = QUEUE,
    request_timeout: RequestTimeout = REQUEST_S,
    write_timeout: WriteTimeout = WRITE_S,
    idle_timeout: IdleTimeout = IDLE_S,
    grace: Grace = GRACE_S,
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
    """Serve a store over HTTP, as OpenAI's and Anthropic's clients speak it.

    Ctrl-C (or SIGTERM) ends it: the reply under way gets `--grace` seconds. docs/SERVER.md has
    the endpoints and what they take.
    """
    given = locals()
    from flashmoe.apps.serve.command import request_of, serve

    return serve(request_of(given))
