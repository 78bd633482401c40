"""A client from outside: writes models and updates with the `safetensors` package, and checks what was published.

    outside.py write DIR PLAN     base.safetensors and update-<k>.safetensors
    outside.py check DIR PLAN     published.safetensors is what float64 arithmetic says

PLAN is JSON: {"seed": 1, "weights": [1, 2.5], "delta": false, "bf16": false, "mixed": [], "tensors": [{"match": "*",
"rule": "max"}]}. With "delta" updates are differences from the base; with "bf16" their floats are BF16, whatever the
model's are; with "mixed" each float tensor of each update has the model's type or one of these, by turns.
"""

import json
import sys
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E5M2 = np.dtype(ml_dtypes.float8_e5m2)
FLOATS = {"F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "BF16": BF16, "F16": np.dtype(np.float16), "F8_E4M3": E4M3, "F8_E5M2": E5M2}
# Digits behind the leading one, and the least exponent of a normal number, of narrow float types.
STEPS = {np.dtype(np.float16): (10, -14), BF16: (7, -126), E4M3: (3, -6), E5M2: (2, -14)}
WHOLE = {f"counts.{kind}": (np.dtype(kind), (9,)) for kind in ("int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")}
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
    "head.f8": (E4M3, (40,)),
    "head.wide_f8": (E5M2, (2, 20)),
} | WHOLE


def is_float(dtype):
    return np.dtype(dtype) in FLOATS.values()


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
    if scale < 1:
        return np.asarray(random.integers(0, 100, shape), dtype=dtype)
    info = np.iinfo(dtype)
    # Of wider ones only those are taken that float64 tells apart.
    low, high = max(info.min, 1 - 2**53), min(info.max, 2**53 - 1)
    values = random.integers(low, high, shape, dtype=np.int64, endpoint=True)
    if values.size > 3:
        values.flat[:3] = [low, high, high - 1]
    return np.asarray(values, dtype=dtype)


def write(folder, plan):
    random = np.random.default_rng(plan["seed"])
    base = {name: some(random, dtype, shape, 1.0) for name, (dtype, shape) in SHAPES.items()}
    save_file(base, folder / "base.safetensors", METADATA)
    for k in range(len(plan["weights"])):
        update, mixed = {}, plan.get("mixed", [])
        for i, (name, (dtype, shape)) in enumerate(SHAPES.items()):
            if rule_of(plan, name, np.dtype(dtype)) == "exclude":
                continue
            kind = BF16 if plan.get("bf16") and is_float(dtype) else dtype
            if mixed and is_float(dtype):
                # Every other client another mix, and some clients only their model's types.
                kind = [dtype, *(FLOATS[name] for name in mixed)][(i * (k % 4) + k // 4) % (len(mixed) + 1)]
            update[name] = some(random, kind, shape, 0.01 if plan.get("delta") else 1.0)
        save_file(update, folder / f"update-{k}.safetensors", {"client": str(k)})


def load(path):
    """Through the package, but for types that its NumPy half does not read."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])

    def narrow(entry):
        first, end = entry["data_offsets"]
        return np.frombuffer(data[start + first : start + end], FLOATS[entry["dtype"]]).reshape(entry["shape"])

    with safe_open(path, framework="np") as file:
        is_narrow = {name: header[name]["dtype"].startswith("F8") for name in file.keys()}
        return {name: narrow(header[name]) if is_narrow[name] else file.get_tensor(name) for name in is_narrow}, file.metadata()


def half_step(dtype, value):
    """Half the distance between neighbouring numbers of a narrow float type; wider ones have none to speak of."""
    if dtype not in STEPS:
        return np.zeros_like(value)
    digits, least = STEPS[dtype]
    exponent = np.floor(np.log2(np.maximum(np.abs(value), 2.0**least)))
    return 2.0 ** (exponent - digits) / 2


def whole_mean(plan, values):
    """The mean of whole numbers, computed without any rounding and then rounded once, ties to even."""
    total = sum(Fraction(w) for w in plan["weights"])
    sums = [sum(Fraction(w) * int(v) for w, v in zip(plan["weights"], column)) for column in zip(*(v.ravel() for v in values))]
    return [round(s / total) for s in sums]


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
        if not is_float(before.dtype) and rule == "mean" and before.dtype != np.bool_:
            expected = whole_mean(plan, [update[name] for update in updates])
            # Sums of numbers of 53 bits are rounded.
            allowed = 8 if before.dtype.itemsize == 8 else 0
            wrong = [(int(x), y) for x, y in zip(found.ravel(), expected) if abs(int(x) - y) > allowed]
            assert not wrong, f"{name}: {wrong}"
            folded += found.size
            continue
        if not is_float(before.dtype):
            values = np.array([update[name] for update in updates])
            expected = np.max(values, axis=0) + (before if plan.get("delta") else np.zeros_like(before))
            if before.dtype == np.bool_ and rule == "mean":
                shares = [sum(w for w, v in zip(plan["weights"], values) if v[i]) for i in range(found.size)]
                expected = np.array([2 * share >= sum(plan["weights"]) for share in shares])
            assert np.array_equal(found, expected), f"{name}: {found} instead of {expected}"
            folded += found.size
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
