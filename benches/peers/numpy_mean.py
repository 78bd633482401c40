"""The arithmetic of a round alone, in NumPy, all updates in memory: numpy_mean.py UPDATE.safetensors CLIENTS ROUNDS

A weighted mean over blocks that stay in cache, into memory that is allocated once: the best a Python server could do.
Prints one JSON object like flower.py.
"""

import json
import resource
import statistics
import sys
import time

import numpy as np

path, count, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
whole = np.fromfile(path, np.float32, offset=8 + int(np.fromfile(path, np.uint64, 1)[0]))
updates = [whole.copy() for _ in range(count)]
weights = np.arange(1, count + 1, dtype=np.float32)
weights /= weights.sum()
mean, scratch, block = np.empty_like(whole), np.empty(1 << 16, np.float32), 1 << 16
taken = []
for _ in range(rounds):
    wall, cpu = time.perf_counter(), time.process_time()
    for at in range(0, whole.size, block):
        out = mean[at : at + block]
        part = scratch[: out.size]
        np.multiply(updates[0][at : at + block], weights[0], out=out)
        for update, weight in zip(updates[1:], weights[1:]):
            np.multiply(update[at : at + block], weight, out=part)
            out += part
    taken.append((time.perf_counter() - wall, time.process_time() - cpu))
wall, cpu = (statistics.median(column) for column in zip(*taken[1:]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak}))
