"""One run of llama.cpp, measured from inside: this file runs in llama.cpp's environment alone.

    ENV/bin/python bench/llamacpp_driver.py '{"gguf": "model.gguf", "prompt_tokens": 128, …}'

Owns the calls of llama.cpp's C interface and the counters read around them; knows nothing of
flashmoe. Weights are mapped from the file, as llama.cpp does by default. As llama-bench does,
tokens are random ids, those decoded too, so that neither a circle of repeated tokens nor a
sampler's time enters the figures. With ``repack`` llama.cpp may copy weights into layouts of its
own, which is quicker where memory holds them twice. ``batch_tokens`` of a prompt pass together.
Loading reads all of a mapped file, whose end then fills the memory there is: ``cold`` names the
bytes of the file, as pairs of start and length, that are put out of memory before the prompt.
In the environment of ik_llama.cpp that takes llama.cpp's place; there ``repack`` means that
weights are rearranged as they are loaded, and not mapped. Prints one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

try:
    import llama_cpp as llama

    LIBRARY = llama.llama_cpp._lib
    FORK = False
except ImportError:
    try:
        import ik_llama_cpp._ctypes_api as llama
    except ImportError:
        sys.stderr.write("error: llama.cpp is missing here: bench/versus_llamacpp.py has it\n")
        sys.exit(2)

    LIBRARY = llama._lib
    FORK = True

INTEGER = 0
"""The type of a whole number among metadata overrides."""

ERROR = 4
"""The level of words that refuse something."""


class Model:
    """A loaded model with one context."""

    def __init__(self, given: dict[str, Any], tokens: int) -> None:
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        options.n_gpu_layers = 0
        if FORK:
            options.use_mmap, options.repack_tensors = not given["repack"], given["repack"]
        else:
            options.load_mode = llama.LLAMA_LOAD_MODE_MMAP
            options.use_extra_bufts = given["repack"]
        if given["experts"] is not None:
            options.kv_overrides = overrides("qwen35moe.expert_used_count", given["experts"])
        self.model = llama.llama_model_load_from_file(given["gguf"].encode(), options)
        if not self.model:
            sys.exit(f"llama.cpp does not load {given['gguf']}")
        context = llama.llama_context_default_params()
        context.n_ctx = tokens
        self.batch_tokens = given["batch_tokens"]
        context.n_batch = context.n_ubatch = self.batch_tokens
        context.n_threads = context.n_threads_batch = given["threads"]
        self.context = llama.llama_init_from_model(self.model, context)
        if not self.context:
            sys.exit("llama.cpp makes no context")
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(self.batch_tokens, 0, 1)
        self.position = 0

    def decode(self, ids: list[int], *, every: bool = False) -> None:
        """Let tokens pass; logits of the last one, or of ``every`` one."""
        for start in range(0, len(ids), self.batch_tokens):
            part = ids[start : start + self.batch_tokens]
            self.batch.n_tokens = len(part)
            for index, token in enumerate(part):
                self.batch.token[index] = token
                self.batch.pos[index] = self.position + index
                self.batch.n_seq_id[index] = 1
                self.batch.seq_id[index][0] = 0
                self.batch.logits[index] = every or start + index == len(ids) - 1
            code = llama.llama_decode(self.context, self.batch)
            if code:
                sys.exit(f"llama_decode returned {code}")
            LIBRARY.llama_synchronize(ctypes.c_void_p(self.context))
            self.position += len(part)

    def logits(self, index: int) -> Any:
        """float32 (vocabulary,) of a token of the last batch."""
        row = llama.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(row, (self.vocabulary,)).copy()

    def forget(self) -> None:
        """Begin a new timeline."""
        if FORK:
            llama.llama_kv_cache_clear(self.context)
        else:
            llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        self.position = 0


def overrides(key: str, value: int) -> Any:
    """One metadata value that replaces the file's; an empty key ends the list."""
    made = (llama.llama_model_kv_override * 2)()
    made[0].tag = INTEGER
    made[0].key = key.encode()
    made[0].value.val_i64 = value
    return made


def put_out(path: str, extents: list[tuple[int, int]]) -> None:
    """Parts of a mapped file leave this process's memory, and then the page cache.

    Whole pages of them; the cache keeps what some process still maps, so that comes first.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    whole = [(-(-start // page) * page, (start + size) // page * page) for start, size in extents]
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 6 or words[5] != os.path.realpath(path):
            continue
        low, high = (int(word, 16) for word in words[0].split("-"))
        offset = int(words[2], 16)
        for start, end in whole:
            first, last = max(start, offset), min(end, offset + high - low)
            if first >= last:
                continue
            at, length = ctypes.c_void_p(low + first - offset), ctypes.c_size_t(last - first)
            if libc.madvise(at, length, mmap.MADV_DONTNEED):
                sys.exit(f"madvise: {os.strerror(ctypes.get_errno())}")
    with open(path, "rb") as file:
        for start, end in whole:
            os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def counters() -> dict[str, float]:
    """What this process has cost so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    lines = Path("/proc/self/io").read_text().splitlines()
    read = next(line.split()[1] for line in lines if line.startswith("read_bytes"))
    return {
        "seconds": time.perf_counter(),
        "read_bytes": int(read),
        "major_faults": used.ru_majflt,
        "system_seconds": used.ru_stime,
    }


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Prompt and decode speed; decoding is what comes after the first token."""
    steps = given["gen_tokens"] - 1
    began = time.perf_counter()
    model = Model(given, given["prompt_tokens"] + steps + 1)
    loaded = time.perf_counter()
    rng = np.random.default_rng(given["seed"])
    ids = rng.integers(0, model.vocabulary, given["prompt_tokens"] + steps).tolist()
    prompt, rest = ids[: given["prompt_tokens"]], ids[given["prompt_tokens"] :]
    if given["cold"] is not None:
        put_out(given["gguf"], given["cold"])
    else:
        model.decode(prompt)
        model.decode(rest[:1])
        model.forget()
    start = counters()
    model.decode(prompt)
    first = counters()
    for token in rest:
        model.decode([token])
    end = counters()

    def a_token(name: str) -> float:
        spent: float = end[name] - first[name]
        return spent / steps

    return {
        "load_s": loaded - began,
        "pp_tok_s": len(prompt) / (first["seconds"] - start["seconds"]),
        "tg_tok_s": 1 / a_token("seconds"),
        "ttft_ms": (first["seconds"] - start["seconds"]) * 1e3,
        "prompt_bytes_per_token": (first["read_bytes"] - start["read_bytes"]) / len(prompt),
        "bytes_per_token": a_token("read_bytes"),
        "major_faults_per_token": a_token("major_faults"),
        "ms_system_per_token": a_token("system_seconds") * 1e3,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "library": library_version(),
        "features": features(),
    }


def save_logits(given: dict[str, Any]) -> dict[str, Any]:
    """Write the logits (tokens, vocabulary) of some ids; the shape is returned."""
    ids = given["ids"]
    model = Model(given, len(ids))
    model.decode(ids, every=True)
    rows = np.stack([model.logits(index) for index in range(len(ids))])
    np.save(given["logits"], rows)
    return {"shape": rows.shape}


def library_version() -> str:
    """Of llama.cpp itself, as its library's file is numbered; of the fork, that of its package."""
    if FORK:
        return f"ik {version('ik-llama-cpp-python')}"
    folder = Path(llama.__file__).parent / "lib"
    found = sorted(folder.glob("libllama.so.*.*.*"))
    return found[0].name.removeprefix("libllama.so.") if found else "unknown"


def features() -> list[str]:
    """What the library says that it was compiled with, as AVX512_VNNI."""
    ask = LIBRARY.llama_print_system_info
    ask.restype, ask.argtypes = ctypes.c_char_p, ()
    parts = ask().decode().replace(":", "|").split("|")
    return [part.split()[0] for part in parts if part.split("=")[-1].strip() == "1"]


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp's words go to stderr only where they refuse something."""
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def main() -> None:
    """Do what the JSON object on the command line asks."""
    given = json.loads(sys.argv[1])
    LIBRARY.llama_log_set(quiet, ctypes.c_void_p(0))
    print(json.dumps(save_logits(given) if "logits" in given else measure(given)))


if __name__ == "__main__":
    main()
