"""Values under bitmaps: the op, the launch that encodes, and the pass that chooses which products are sparse."""

import numpy as np
import pytest

from knapper.compiler import text
from knapper.compiler.codegen.generator import Group, generators
from knapper.compiler.ir import DTYPES
from knapper.compiler.sparsity.bitmap import SLOT, Layout
from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.isa.program import BASE, Launch, Operand, Port, Program
from knapper.runtime.session import Session

DSTC = Machine.load("dstc")
SHAPES = [
    ((70, 64), 0), ((33, 48), 0), ((5, 3), 0), ((2, 3, 40), 0), ((1, 7, 9, 16), 1),
    ((2, 5, 6, 80), 1), ((3, 4, 3, 34), 2), ((1, 6, 5, 20), 0), ((1, 1, 1, 1), 3),
]  # fmt: skip


def sparse(shape: tuple[int, ...], dtype: str, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(DTYPES[dtype])
    x[rng.random(shape) >= density] = 0
    x[rng.random(shape) < 0.05] = -0.0
    return x


def encoded(x: np.ndarray, dtype: str, pad: int, engine: str) -> np.ndarray:
    """The bytes that the kernel writes."""
    shape = ",".join(map(str, x.shape))
    g = text.parse(f"""graph @n(%x: {dtype}[{shape}]) {{
      %d: {dtype}[{shape}], %b: {dtype}[{shape}] bitmap{{pad={pad}}} = BitmapEncode %x {{pad={pad}}} group("e")
      %y: {dtype}[{shape}] = Relu %x group("r")
      return %y
    }}
    """)
    node = g.nodes[0]
    types = g.types()
    group = Group("e", (node,), {"x": types["x"]}, {"b": types["b"]})
    encode = generators()["encode"]
    assert encode.serves(group, DSTC) is None
    assert encode.cost(group, {}, DSTC) > 0
    (e,) = encode.lower(group, {}, DSTC).launches
    size, out = x.nbytes, -(-x.nbytes // 256) * 256
    total = types["b"].bytes
    assert total == Layout(x.shape, pad).bytes
    operands = (Operand("x", BASE, size, "r"), Operand("b", BASE + out, total, "w"))
    launch = Launch(e.kernel.name, e.grid, (BASE, BASE + out), ("e",), operands)
    program = Program(
        target=DSTC.to_dict(), kernels={e.kernel.name: e.kernel}, launches=(launch,),
        inputs=(Port("x", dtype, x.shape, BASE),), outputs=(Port("b", "u8", (total,), BASE + out),),
        rodata=b"", objects=(), arena_bytes=out + total, meta={},
    )  # fmt: skip
    session = Session(program)
    return session.run({"x": x}, engine=engine).outputs["b"]


def touched(x: np.ndarray, layout: Layout) -> np.ndarray:
    """The bytes that are written: packed values, all bitmaps, all flags."""
    written = np.zeros(layout.bytes, bool)
    count = layout.segments * layout.channels
    nnz = np.bitwise_count(layout.bitmaps(x)).reshape(-1, 1)
    written[: count * SLOT] = (np.arange(SLOT) < 2 * nnz).reshape(-1)
    values, bitmaps, _ = layout.sections
    written[values : values + 4 * count] = True
    flags = layout.segments * layout.flags
    written[values + bitmaps : values + bitmaps + flags] = True
    return written


@pytest.mark.parametrize(("shape", "pad"), SHAPES)
@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_the_kernel_writes_what_numpy_encodes(
    shape: tuple[int, ...], pad: int, engine: str
) -> None:
    dtype = "bf16" if len(shape) == 3 else "f16"
    x = sparse(shape, dtype, 0.4)
    layout = Layout(shape, pad)
    got, where = encoded(x, dtype, pad, engine), touched(x, layout)
    np.testing.assert_array_equal(got[where], layout.encode(x)[where])
    np.testing.assert_array_equal(
        layout.decode(got, x.dtype), np.where(x == 0, 0, x).astype(x.dtype)
    )


def test_what_is_no_product_reads_elements() -> None:
    with pytest.raises(KnapperError, match="Reshape reads elements") as e:
        text.parse("""graph @n(%x: f16[8,32], %w: f16[32,16]) {
          %d: f16[8,32], %b: f16[8,32] bitmap{pad=0} = BitmapEncode %x
          %y: f16[8,16] = MatMul %b, %w
          %v: f16[16,16] = Reshape %b {shape=[16,16]}
          return %y, %v
        }
        """)
    assert "first result of BitmapEncode" in str(e.value)
