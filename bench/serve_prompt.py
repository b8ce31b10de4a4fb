"""A long prompt through a served store: what its client hears, leaves behind, and finds again.

    .venv/bin/flashmoe serve STORE --ram 8GiB --context 17000
    .venv/bin/python bench/serve_prompt.py --url http://127.0.0.1:8080 --model STORE --tokens 16000

Four requests one after the other, of random token ids, streamed: a client that goes away after
``--leave`` seconds, another with a short prompt, the first again, and the first with a few tokens
more. Of each, when its comments and its first token came, how far the prompt was, and how much of
it was known. Faults: a gap longer than five seconds, a count that falls, a retry that begins at
nothing. A table, a verdict, and a JSON object as the last line; exit code 1 where one was found.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from dataclasses import asdict, dataclass, field

import httpx
from command import above_zero, run, whole

MOST_GAP_S = 5.0
MORE = 3  # tokens that the last request has besides
PROGRESS = re.compile(r": prompt (\d+)/(\d+) tokens")


@dataclass
class Heard:
    """One request: seconds from when it was sent, and tokens."""

    name: str
    prompt_tokens: int
    first_token_s: float | None = None
    seconds: float = 0.0
    longest_gap_s: float = 0.0
    passed: list[int] = field(default_factory=list)
    cached_tokens: int | None = None

    def faults(self) -> list[str]:
        """What no client should see."""
        found = []
        if self.longest_gap_s > MOST_GAP_S:
            found.append(f"{self.name}: nothing came for {self.longest_gap_s:.1f} s")
        if self.passed != sorted(self.passed):
            found.append(f"{self.name}: the count of tokens falls: {self.passed}")
        return found


def ask(http: httpx.Client, model: str, name: str, ids: list[int], leave_s: float | None) -> Heard:
    """Send a prompt, and listen to the end or for so long."""
    body = {
        "model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    heard, began = Heard(name, len(ids)), time.monotonic()
    last = began
    with http.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code != httpx.codes.OK:
            sys.exit(f"error: {reply.read().decode(errors='replace')[:500]}")
        for line in reply.iter_lines():
            if not line:
                continue
            now = time.monotonic()
            heard.longest_gap_s, last = max(heard.longest_gap_s, now - last), now
            if progress := PROGRESS.match(line):
                heard.passed.append(int(progress[1]))
            elif line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    sys.exit(f"error: {event['error']['message']}")
                if event["choices"] and heard.first_token_s is None:
                    heard.first_token_s = now - began
                if event.get("usage"):
                    heard.cached_tokens = event["usage"]["prompt_tokens_details"]["cached_tokens"]
            if leave_s is not None and now - began >= leave_s:
                break
    heard.seconds = time.monotonic() - began
    return heard


def story(http: httpx.Client, model: str, tokens: int, below: int, leave_s: float) -> list[Heard]:
    """The four requests."""
    chance = random.Random(0)
    ids = [chance.randrange(below) for _ in range(tokens + MORE)]
    return [
        ask(http, model, "goes away", ids[:tokens], leave_s),
        ask(http, model, "another", [chance.randrange(below) for _ in range(MORE)], None),
        ask(http, model, "again", ids[:tokens], None),
        ask(http, model, "and more", ids, None),
    ]


def table(all_heard: list[Heard]) -> str:
    """For people."""
    lines = [
        f"{'':10} {'prompt':>7} {'known':>7} {'passed':>13} {'events':>7} {'longest gap':>12} "
        f"{'first token':>12}"
    ]
    for one in all_heard:
        known = "" if one.cached_tokens is None else str(one.cached_tokens)
        passed = f"{one.passed[0]}-{one.passed[-1]}" if one.passed else ""
        first = "" if one.first_token_s is None else f"{one.first_token_s:.1f} s"
        lines.append(
            f"{one.name:10} {one.prompt_tokens:7} {known:>7} {passed:>13} {len(one.passed):7} "
            f"{one.longest_gap_s:10.1f} s {first:>12}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", required=True, help="as the server calls it")
    parser.add_argument("--tokens", type=whole(2), default=16_000, help="of the prompt")
    parser.add_argument("--below", type=whole(2), default=1000, help="ids are drawn below this")
    parser.add_argument("--leave", type=above_zero, default=60.0, help="seconds until it goes away")
    given = parser.parse_args()
    try:
        with httpx.Client(base_url=given.url, timeout=60, trust_env=False) as http:
            found = story(http, given.model, given.tokens, given.below, given.leave)
    except httpx.HTTPError as error:
        sys.exit(f"error: {given.url}: {error}: start `flashmoe serve` there, or give --url")
    faults = [fault for one in found for fault in one.faults()]
    gone, _, again, more = found
    if gone.first_token_s is not None:
        faults.append("the first prompt was read before its client went away: give a longer one")
    for one in (again, more):
        if not one.cached_tokens:
            faults.append(f"{one.name}: nothing of the prompt was known")
    print("\n".join([table(found), *faults, f"verdict: {'FAILED' if faults else 'passed'}"]))
    print(json.dumps({"passed": not faults, "requests": [asdict(one) for one in found]}))
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
