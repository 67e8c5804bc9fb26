"""Compile every kernel for a Hopper GPU, which needs none: run without the interpreter. Prints the kernels' names."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from service.engine.blocks import BLOCK, COLUMNS, SHIFT
from service.engine.gpu import masking, operators

TARGET = GPUTarget("cuda", 90, 32)


def build(kernel: object, pointers: dict[str, str], scalars: dict[str, str], constants: dict[str, object]) -> None:
    names = list(kernel.arg_names)
    signature = {**pointers, **scalars, **dict.fromkeys(constants, "constexpr")}
    assert sorted(signature) == sorted(names), names
    fixed = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(kernel, {name: signature[name] for name in names}, fixed, aligned)
    assert len(triton.compile(source, target=TARGET).asm["cubin"]) > 1000
    print(kernel.__name__)


for dtype in ("bf16", "fp32"):
    p = f"*{dtype}"
    for on in (True, False):
        build(
            masking._write,
            {"out": p, "source": p, "bits": "*u8", "scale": "*fp32", "blocks": "*i64"},
            {},
            {
                "MASKED": True,
                "SCALED": on,
                "NARROW": dtype == "bf16",
                "BYTES": BLOCK // 8,
                "COLUMNS": COLUMNS,
                "SHIFT": SHIFT,
            },
        )
        tile = {"ADDED": on, "ACT": 2 if on else 1, "P": 16, "K": 128}
        whole = dict.fromkeys(("column", "positions", "height", "width", "channels", "rows"), "i32")
        build(
            operators._finish,
            dict.fromkeys(("y", "bias", "add"), p),
            {name: whole[name] for name in ("rows", "channels")},
            {"BIASED": on, **tile},
        )
        build(
            operators._scale_rows,
            {"y": p, "add": p, "addresses": "*i64"},
            {name: whole[name] for name in ("column", "positions", "channels")},
            tile,
        )
        build(
            operators._taps_rows,
            {"out": p, "x": p, "add": p, "addresses": "*i64"},
            {name: whole[name] for name in ("column", "height", "width", "channels")},
            tile,
        )
    colours = dict.fromkeys(("mean0", "mean1", "mean2", "std0", "std1", "std2"), "fp32")
    build(operators._pixels, {"out": p, "pixels": "*u8"}, {**colours, "count": "i32"}, {"B": 2048})
build(
    operators._heads,
    {"out": "*fp32", "features": "*fp32", "weights": "*i64", "biases": "*i64", "classes": "*i64"},
    {"width": "i32", "most": "i32"},
    {"C": 16, "F": 512},
)
