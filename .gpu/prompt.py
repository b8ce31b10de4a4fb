import sys, time
import numpy as np
from flashmoe import Budget, Engine, Runtime, Sampling

store, vram, ram = sys.argv[1:4]
g = lambda s: None if s == "-" else int(float(s) * (1 << 30))
e = Engine.open(
    store,
    kernels="cuda",
    budget=Budget(context_tokens=8192, ram_bytes=g(ram), vram_bytes=g(vram)),
    runtime=Runtime(profile=False),
)
print(e.vram, "ram slots", e.streamer.slots, flush=True)
rng = np.random.default_rng(1)
for turn in range(4):
    for n in (4096, 512):
        s = e.session()
        ids = rng.integers(0, e.shape.vocabulary, n).tolist()
        c0 = e.counters
        t = time.time()
        st = next(iter(s.generate(ids, Sampling(temperature=0, max_tokens=1))))
        dt = time.time() - t
        print(
            f"turn {turn}: {n} tokens in {dt:.3f} s: {n / dt:.0f} tok/s",
            e.counters.since(c0),
            flush=True,
        )
        del s
import cProfile, pstats

p = cProfile.Profile()
p.enable()
s = e.session()
next(
    iter(
        s.generate(
            rng.integers(0, e.shape.vocabulary, 4096).tolist(),
            Sampling(temperature=0, max_tokens=1),
        )
    )
)
p.disable()
pstats.Stats(p).sort_stats("tottime").print_stats(22)
e.close()
