"""A client from outside: writes models and updates with the `safetensors` package, and checks what was published.

    outside.py write DIR PLAN     base.safetensors and update-<k>.safetensors
    outside.py check DIR PLAN     published.safetensors is what float64 arithmetic says

PLAN is JSON: {"seed": 1, "weights": [1, 2.5], "delta": false, "bf16": false, "tensors": [{"match": "*", "rule": "max"}]}.
With "delta" updates are differences from the base; with "bf16" their floats are BF16, whatever the model's are.
"""

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

BF16 = np.dtype(ml_dtypes.bfloat16)
METADATA = {"format": "pt", "made by": "an outside client, ünïcode too"}
SHAPES = {
    "embed.weight": (np.float32, (61, 40)),
    "block.attention.weight": (np.float16, (16, 24)),
    "block.attention.bias": (np.float16, (24,)),
    "block.empty": (np.float32, (0, 3)),
    "head.weight": (BF16, (8, 24)),
    "head.scale": (np.float32, ()),
    "head.precise": (np.float64, (33,)),
    "bn.running_mean": (np.float32, (24,)),
    "bn.running_var": (np.float32, (24,)),
    "bn.num_batches_tracked": (np.int64, ()),
    "mask": (np.bool_, (5,)),
    "codes": (np.uint8, (7,)),
}


def is_float(dtype):
    return dtype == BF16 or np.issubdtype(dtype, np.floating)


def rule_of(plan, name, dtype):
    for rule in plan.get("tensors", []):
        if fnmatchcase(name, rule["match"]):
            return rule["rule"]
    return "mean" if is_float(dtype) else "keep"


def some(random, dtype, shape, scale):
    if is_float(np.dtype(dtype)):
        return np.asarray(scale * random.standard_normal(shape), dtype=dtype)
    if dtype == np.bool_:
        return random.integers(0, 2, shape).astype(dtype)
    return np.asarray(random.integers(0, 100, shape), dtype=dtype)


def write(folder, plan):
    random = np.random.default_rng(plan["seed"])
    base = {name: some(random, dtype, shape, 1.0) for name, (dtype, shape) in SHAPES.items()}
    save_file(base, folder / "base.safetensors", METADATA)
    for k in range(len(plan["weights"])):
        update = {}
        for name, (dtype, shape) in SHAPES.items():
            if rule_of(plan, name, np.dtype(dtype)) == "exclude":
                continue
            kind = BF16 if plan.get("bf16") and is_float(np.dtype(dtype)) else dtype
            update[name] = some(random, kind, shape, 0.01 if plan.get("delta") else 1.0)
        save_file(update, folder / f"update-{k}.safetensors", {"client": str(k)})


def load(path):
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def half_step(dtype, value):
    """Half the distance between neighbouring numbers of a 16-bit float type; wider ones have none to speak of."""
    if dtype == np.float16:
        digits, least = 10, -14
    elif dtype == BF16:
        digits, least = 7, -126
    else:
        return np.zeros_like(value)
    exponent = np.floor(np.log2(np.maximum(np.abs(value), 2.0**least)))
    return 2.0 ** (exponent - digits) / 2


def expected_of(plan, name, rule, base, updates):
    values = [update[name].astype(np.float64) for update in updates]
    if rule == "max":
        joint = np.max(values, axis=0)
    else:
        joint = sum(w * v for w, v in zip(plan["weights"], values)) / sum(plan["weights"])
    return joint + base.astype(np.float64) if plan.get("delta") else joint


def check(folder, plan):
    base, metadata = load(folder / "base.safetensors")
    published, found_metadata = load(folder / "published.safetensors")
    updates = [load(folder / f"update-{k}.safetensors")[0] for k in range(len(plan["weights"]))]
    assert found_metadata == metadata == METADATA, f"metadata: {found_metadata}"
    assert set(published) == set(base), f"tensors: {sorted(published)}"
    worst, folded, kept = 0.0, 0, 0
    for name, before in base.items():
        found = published[name]
        assert (found.dtype, found.shape) == (before.dtype, before.shape), f"{name}: {found.dtype} {found.shape}"
        rule = rule_of(plan, name, before.dtype)
        if rule in ("keep", "exclude"):
            assert found.tobytes() == before.tobytes(), f"{name}: {found} instead of {before}"
            kept += found.size
            continue
        expected = expected_of(plan, name, rule, before, updates)
        error = np.abs(found.astype(np.float64) - expected)
        allowed = 1e-6 * np.abs(expected) + half_step(before.dtype, expected)
        at = np.flatnonzero(error > allowed)
        assert at.size == 0, f"{name}[{at[0]}]: {found.flat[at[0]]} instead of {expected.flat[at[0]]}"
        folded += found.size
        if found.size and before.dtype in (np.float32, np.float64):
            worst = max(worst, float(np.max(error / np.abs(expected))))
    print(json.dumps({"folded": folded, "kept": kept, "worst": worst}))


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
