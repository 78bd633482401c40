"""What the functions that take all updates at once publish, worked out again with NumPy.

    classes.py write DIR PLAN     base.safetensors and update-<k>.safetensors
    classes.py check DIR PLAN     published.safetensors is what NumPy says

PLAN is JSON: {"function": "median" | "krum" | "flora", "config": {}, "weights": [...], "ranks": [...], "delta": false,
"mixed": false}. A rank may be two, one for each layer; with "mixed" tensors of one update have several float types.
Clients are named so that their order is that of their numbers.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

SHAPES = {
    "layer.0.weight": (np.float32, (70, 4001)),
    "layer.0.bias": (np.float32, (70,)),
    "layer.1.weight": (np.float64, (33, 51)),
    "steps": (np.int64, ()),
}
PREFIX = "base_model.model."


def write(folder, plan):
    random = np.random.default_rng(3)
    base = {name: np.asarray(random.standard_normal(shape) * 3, dtype) for name, (dtype, shape) in SHAPES.items()}
    save_file(base, folder / "base.safetensors")
    for k in range(len(plan["weights"])):
        if plan["function"] == "flora":
            update, ranks = {}, plan["ranks"][k]
            for name, value in base.items():
                # The last client leaves a layer out.
                if value.ndim != 2 or (k == len(plan["weights"]) - 1 and name == "layer.1.weight"):
                    continue
                rank = ranks[int(name[6])] if isinstance(ranks, list) else ranks
                (d, m), stem = value.shape, PREFIX * (k % 2) + name.removesuffix(".weight")
                update[stem + ".lora_A.weight"] = random.standard_normal((rank, m)).astype(np.float32)
                update[stem + ".lora_B.weight"] = random.standard_normal((d, rank))
        else:
            far = 1e6 if k in plan.get("wrong", []) else 1.0
            update = {name: np.asarray(far * random.standard_normal(shape), dtype) for name, (dtype, shape) in SHAPES.items()}
            if plan.get("mixed"):
                for i, name in enumerate(["layer.0.weight", "layer.0.bias", "layer.1.weight"]):
                    update[name] = update[name].astype([np.float32, np.float16, np.float64][(i * k + k // 3) % 3])
        save_file(update, folder / f"update-{k}.safetensors")


def krum(plan, updates):
    flat = [np.concatenate([u[name].astype(np.float64).ravel() for name in SHAPES if name != "steps"]) for u in updates]
    n, f = len(flat), plan["config"].get("byzantine", 0)
    scores = []
    for i in range(n):
        distances = sorted(float(np.sum((flat[i] - flat[j]) ** 2)) for j in range(n) if j != i)
        scores.append(sum(distances[: n - f - 2]))
    return np.argsort(scores, kind="stable")[: plan["config"].get("select", 1)]


def expected_of(plan, name, base, updates):
    weights, config = plan["weights"], plan["config"]
    if plan["function"] == "flora":
        total, stem = np.zeros(base.shape), name.removesuffix(".weight")
        for weight, update in zip(weights, updates):
            parts = {key.removeprefix(PREFIX): value.astype(np.float64) for key, value in update.items()}
            if len(parts.get(stem + ".lora_A.weight", [])):
                a, b = parts[stem + ".lora_A.weight"], parts[stem + ".lora_B.weight"]
                total += weight / sum(weights) * config.get("alpha", len(a)) / len(a) * (b @ a)
        return base.astype(np.float64) + total
    values = np.array([update[name] for update in updates], dtype=np.float64)
    if plan["function"] == "krum":
        joint = values[krum(plan, updates)].mean(axis=0)
    elif "trim" in config:
        cut = int(config["trim"] * len(values))
        joint = np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)
    else:
        joint = np.median(values, axis=0)
    return joint + base.astype(np.float64) if plan.get("delta") else joint


def check(folder, plan):
    base, published = load_file(folder / "base.safetensors"), load_file(folder / "published.safetensors")
    updates = [load_file(folder / f"update-{k}.safetensors") for k in range(len(plan["weights"]))]
    updates = [u for k, u in enumerate(updates) if k not in plan.get("left_out", [])]
    plan["weights"] = [w for k, w in enumerate(plan["weights"]) if k not in plan.get("left_out", [])]
    worst = 0.0
    for name, before in base.items():
        found = published[name]
        assert (found.dtype, found.shape) == (before.dtype, before.shape), name
        if before.dtype == np.int64 or (plan["function"] == "flora" and before.ndim != 2):
            assert found.tobytes() == before.tobytes(), name
            continue
        expected = expected_of(plan, name, before, updates)
        allowed = (1e-12 if before.dtype == np.float64 else 1e-6) * np.maximum(np.abs(expected), 1.0)
        error = np.abs(found.astype(np.float64) - expected)
        assert np.all(error <= allowed), f"{name}: {np.max(error / allowed)} times what is allowed"
        worst = max(worst, float(np.max(error / allowed)))
    print(json.dumps({"worst": worst, "chosen": [int(k) for k in krum(plan, updates)] if plan["function"] == "krum" else []}))


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
