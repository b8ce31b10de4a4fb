import sys, time, json
import numpy as np
from flashmoe import Budget, Engine, Runtime, Sampling

store, vram, ram, gen = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
g = lambda s: None if s == "-" else int(float(s) * (1 << 30))
t = time.time()
e = Engine.open(
    store,
    kernels="cuda",
    budget=Budget(context_tokens=1024, ram_bytes=g(ram), vram_bytes=g(vram)),
    runtime=Runtime(profile=False),
)
tier = e.decoder._tier
print(
    "opened",
    round(time.time() - t, 1),
    "s; vram slots",
    tier.slots,
    "ram slots",
    e.streamer.slots,
    flush=True,
)
rng = np.random.default_rng(1)
for turn in range(3):
    s = e.session()
    ids = rng.integers(0, e.shape.vocabulary, 32).tolist()
    t = time.time()
    c0 = e.counters
    steps = []
    for st in s.generate(ids, Sampling(temperature=0, max_tokens=gen)):
        steps.append(time.time())
    d = e.counters.since(c0)
    dt = np.diff(steps)
    print(
        f"turn {turn}: prompt {steps[0] - t:.2f} s, decode {len(dt) / dt.sum():.1f} tok/s, median {np.median(dt) * 1e3:.3f} ms, least {dt.min() * 1e3:.3f}",
        d,
        flush=True,
    )
# pieces
dec = e.decoder
s = e.session()
s.logits(ids[:4])
st = s._state
gpu = e.kernels.device
if len(sys.argv) > 5:
    import cProfile, pstats

    x = st.last

    def once():
        for _ in range(30):
            dec.logits(x)

    t = time.time()
    once()
    print("head ms", (time.time() - t) / 30 * 1e3)
    t = time.time()
    for i in range(30):
        dec._pass(5, st)
    print("pass ms", (time.time() - t) / 30 * 1e3)
    g = dec._graph(st)
    dec._mailbox.begin(5, st.position)
    gpu.synchronize()
    ms = []
    for i in range(20):
        dec._mailbox.begin(5, st.position)
        ms.append(gpu.time_ms(g.launch))
    print("graph ms", np.median(ms), min(ms))
    p = cProfile.Profile()
    p.enable()
    for i in range(30):
        dec._pass(5, st)
    p.disable()
    pstats.Stats(p).sort_stats("tottime").print_stats(14)
e.close()
