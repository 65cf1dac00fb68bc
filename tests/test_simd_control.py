"""TIR → instructions, statements: loops, branches, variables, shared memory, and neighbours that travel together."""

from __future__ import annotations

import numpy as np
import pytest
from tir import (
    BX,
    MACHINE,
    THREAD,
    Json,
    T,
    code,
    each,
    kernel,
    local,
    num,
    op,
    run,
    var,
)

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.simd.translate import translate
from knapper.compiler.ir import DTYPES
from knapper.isa.errors import CompileError
from knapper.isa.instructions import BRA, BSSY, EXIT, ISETP, LDG, LDL, STG
from knapper.isa.modifiers import Width
from knapper.runtime.session import EngineName

# --- control flow

ENGINES: tuple[EngineName, ...] = ("reference", "fast")
ACC = 1
"""The local variable of the kernels below is buffer 1, after the output."""


def read(i: Json = num(0)) -> Json:  # noqa: B008
    return ["load", "i32", ACC, i]


def assign(value: Json, i: Json = num(0)) -> Json:  # noqa: B008
    return ["store", ACC, i, value]


def both(body: Json, count: int = 1, blocks: int = 1) -> list[int]:
    """What 64 threads a block store, the same on both engines."""
    k = kernel(
        ["seq", ["alloc", ACC], *body], [], ("i32", 64 * blocks), blocks, [local("i32", count)]
    )
    first, second = (run(k, [], engine).tolist() for engine in ENGINES)
    assert first == second
    return [int(v) for v in first]


def result(value: Json = read()) -> Json:  # noqa: B008
    return ["store", 0, THREAD, value]


def loop(n: Json, *body: Json, variable: int = 5) -> Json:
    return ["for", variable, num(0), n, ["seq", *body]]


def test_a_long_loop_has_a_uniform_counter() -> None:
    body = [
        assign(num(0)),
        loop(num(1000), assign(op("add", read(), op("mul", var(5), var(T))))),
        result(),
    ]
    assert both(body) == [499500 * t for t in range(64)]


def test_a_loop_of_another_length_in_each_lane() -> None:
    body = [assign(num(0)), loop(var(T), assign(op("add", read(), var(5)))), result()]
    assert both(body) == [t * (t - 1) // 2 for t in range(64)]


def test_a_while_loop() -> None:
    """Collatz steps from t + 1."""
    n, odd = read(num(1)), op("eq", op("floormod", read(num(1)), num(2)), num(1), "bool")
    next_ = [
        "select",
        "i32",
        odd,
        op("add", op("mul", n, num(3)), num(1)),
        op("floordiv", n, num(2)),
    ]
    step = ["seq", assign(next_, num(1)), assign(op("add", read(), num(1)))]
    body = [
        assign(num(0)),
        assign(op("add", var(T), num(1)), num(1)),
        ["while", op("ne", n, num(1), "bool"), step],
        result(),
    ]

    def collatz(x: int) -> int:
        return 0 if x == 1 else 1 + collatz(3 * x + 1 if x % 2 else x // 2)

    assert both(body, count=2) == [collatz(t + 1) for t in range(64)]


def test_a_small_branch_is_predicated() -> None:
    body = [
        assign(num(7)),
        ["if", op("lt", var(T), num(20), "bool"), assign(var(T)), assign(num(-1))],
        result(),
    ]
    assert both(body) == [t if t < 20 else -1 for t in range(64)]
    assert not {BRA, BSSY} & set(
        code(kernel(["seq", *body], [], ("i32", 64), 1, [local("i32", 1)]))
    )


def test_a_branch_with_a_loop_diverges_and_meets_again() -> None:
    inside = loop(num(500), assign(op("add", read(), var(T))))
    body = [
        assign(num(0)),
        ["if", op("lt", var(T), num(20), "bool"), inside, assign(num(-1))],
        result(op("add", read(), num(1))),
    ]
    assert both(body) == [500 * t + 1 if t < 20 else 0 for t in range(64)]


def test_a_branch_of_whole_blocks_is_a_jump() -> None:
    body = [
        assign(num(3)),
        ["if", op("lt", var(BX), num(2), "bool"), assign(var(T)), ["seq"]],
        result(),
    ]
    assert both(body, blocks=4) == [t if b < 2 else 3 for b in range(4) for t in range(64)]


def test_lanes_without_work_leave_at_once() -> None:
    """If all that a kernel does is under one condition, nothing after it is predicated."""
    x = np.arange(50, dtype=np.float32)
    inside = op("lt", var(T), num(50), "bool")
    store = ["store", 1, var(T), ["load", "f32", 0, var(T)]]
    k = kernel(["if", inside, store, ["seq"]], [x], ("f32", 50))
    assert run(k, [x]).tolist() == x.tolist()
    guarded = [i for i in translate(k, "k", MACHINE).kernel.code if i.guard != 7]
    assert [type(i) for i in guarded] == [EXIT]


def test_a_condition_that_the_loop_changes_stays_in_the_loop() -> None:
    early = op("lt", var(5), var(T), "bool")
    body = [loop(num(600), ["if", early, ["store", 0, THREAD, var(5)], ["seq"]])]
    k = kernel(
        ["seq", ["if", op("lt", num(0), var(T), "bool"), body[0], ["store", 0, THREAD, num(-1)]]],
        [],
        ("i32", 64),
    )
    assert run(k, []).tolist() == [-1, *range(63)]


def test_what_a_guard_leaves_out_is_not_loaded() -> None:
    """if_then_else evaluates one branch: the other one's address may lie outside the buffer."""
    x = np.arange(4, dtype=np.float32)
    inside = op("lt", op("floormod", var(T), num(8)), num(4), "bool")
    value = [
        "call",
        "f32",
        "if_then_else",
        inside,
        ["load", "f32", 0, op("floormod", var(T), num(8))],
        ["float", "f32", (-1.0).hex()],
    ]
    for engine in ENGINES:
        got = run(kernel(["store", 1, var(T), value], [x], ("f32", 64)), [x], engine)
        assert got.tolist() == [0.0, 1.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0] * 8


def test_swapping_variables_in_a_loop() -> None:
    """Fibonacci: the new value of one is the old value of the other."""
    step = [
        ["let", 6, op("add", read(), read(num(1)))],
        assign(read(num(1))),
        assign(var(6), num(1)),
    ]
    body = [assign(num(0)), assign(num(1), num(1)), loop(num(300), *step), result()]
    a, b = 0, 1
    for _ in range(300):
        a, b = b, (a + b + 2**31) % 2**32 - 2**31
    assert both(body, count=2) == [a] * 64


def test_an_array_with_constant_indices_is_registers() -> None:
    fill = loop(num(8), assign(op("mul", var(5), var(T)), var(5)))
    body = [fill, result(op("add", read(num(3)), read(num(7))))]
    assert both(body, count=8) == [10 * t for t in range(64)]
    assert LDL not in code(kernel(["seq", *body], [], ("i32", 64), 1, [local("i32", 8)]))


def test_an_array_that_lanes_index_is_local_memory() -> None:
    fill = loop(num(8), assign(op("mul", var(5), num(10)), var(5)))
    body = [["alloc", ACC], fill, result(read(op("floormod", var(T), num(8))))]
    assert both(body, count=8) == [10 * (t % 8) for t in range(64)]
    assert LDL in code(kernel(["seq", *body], [], ("i32", 64), 1, [local("i32", 8)]))


def test_shared_memory_between_warps() -> None:
    shared = local("i32", 64, "shared")
    mirror = ["load", "i32", ACC, op("sub", num(63), var(T))]
    body = [
        "seq",
        ["alloc", ACC],
        assign(op("mul", var(T), num(2)), var(T)),
        ["sync", "shared"],
        result(mirror),
    ]
    for engine in ENGINES:
        assert run(kernel(body, [], ("i32", 64), 1, [shared]), [], engine).tolist() == list(
            range(126, -2, -2)
        )


@pytest.mark.parametrize("dtype", ["i32", "f32", "i64", "f64", "f16", "bool"])
def test_shuffles_move_every_type(dtype: str) -> None:
    x = np.arange(64).astype(DTYPES[dtype]) if dtype != "bool" else np.arange(64) % 3 == 0
    down = [
        "call",
        dtype,
        "tvm_warp_shuffle_down",
        num(-1, "u32"),
        ["load", dtype, 0, var(T)],
        num(1),
        num(32),
        num(32),
    ]
    want = np.array([x[t + 1] if t % 32 < 31 else x[t] for t in range(64)])
    assert each(down, x, dtype=dtype).tolist() == want.tolist()


def test_more_booleans_than_predicates() -> None:
    """Ten bits of a number, read before a barrier and used after it: the second attempt at the kernel keeps them in registers."""
    x = np.arange(64, dtype=np.int32) * 13
    loaded = ["load", "i32", 0, var(T)]
    bits = [op("floormod", op("floordiv", loaded, num(1 << i)), num(2)) for i in range(10)]
    lets = [["let", 10 + i, op("ne", bit, num(0), "bool")] for i, bit in enumerate(bits)]
    mirrored = num(0)
    for i in range(10):
        bit = ["cast", "i32", var(10 + i, "bool")]
        mirrored = op("add", mirrored, op("mul", bit, num(1 << (9 - i))))
    body = ["seq", *lets, ["sync", "shared"], ["store", 1, var(T), mirrored]]
    k = kernel(body, [x], ("i32", 64))
    assert run(k, [x]).tolist() == [int(f"{v:010b}"[::-1], 2) for v in x]
    predicates = [i for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, ISETP)]
    assert len(predicates) == 20  # each is tested twice: when it is put away, and when it is wanted


def test_a_buffer_beyond_32_bits_is_an_error() -> None:
    k = kernel(["store", 0, var(T), num(1)], [], ("i32", 1 << 30))
    with pytest.raises(CompileError, match="E443: kernel k: a buffer of 1073741824 elements"):
        translate(k, "k", MACHINE)


def test_more_shared_memory_than_a_block_has_is_an_error() -> None:
    shared = local("i32", 1 << 20, "shared")
    k = kernel(["seq", ["alloc", 1], ["store", 1, var(T), num(1)]], [], ("i32", 1), 1, [shared])
    with pytest.raises(CompileError, match="E443: kernel k: needs 4194304 bytes of shared memory"):
        translate(k, "k", MACHINE)


# --- memory: neighbours travel together


def vector(dtype: str, lanes: int, first: Json) -> Json:
    return ["ramp", f"i32x{lanes}", first, num(1)], f"{dtype}x{lanes}"


WIDE = [("f32", 4), ("f16", 8), ("bf16", 8), ("f64", 2), ("i64", 2), ("i32", 4)]
NARROW = [("i16", 8), ("u16", 4), ("i8", 4), ("u8", 2)]


@pytest.mark.parametrize(("dtype", "lanes"), WIDE)
def test_aligned_neighbours_are_one_access(dtype: str, lanes: int) -> None:
    x = np.arange(64 * lanes).astype(DTYPES[dtype])
    index, kind = vector(dtype, lanes, op("mul", var(T), num(lanes)))
    k = kernel(
        ["store", 1, index, op("add", ["load", kind, 0, index], ["load", kind, 0, index], kind)],
        [x],
        (dtype, x.size),
    )
    assert run(k, [x]).tolist() == (x + x).tolist()
    moves = [i for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, LDG | STG)]
    assert [i.width for i in moves] == [Width._128] * 2


@pytest.mark.parametrize(("dtype", "lanes"), NARROW)
def test_narrow_integers_travel_alone(dtype: str, lanes: int) -> None:
    """Each has a register of its own, extended to 32 bits."""
    x = np.arange(-32 * lanes, 32 * lanes).astype(DTYPES[dtype])
    index, kind = vector(dtype, lanes, op("mul", var(T), num(lanes)))
    load = ["load", kind, 0, index]
    k = kernel(["store", 1, index, op("add", load, load, kind)], [x], (dtype, x.size))
    assert run(k, [x]).tolist() == (x + x).tolist()


def test_misaligned_neighbours_are_single_accesses() -> None:
    x = np.arange(130, dtype=np.float32)
    index, kind = vector("f32", 2, op("add", op("mul", var(T), num(2)), num(1)))
    k = kernel(["store", 1, index, ["load", kind, 0, index]], [x], ("f32", 130))
    assert run(k, [x])[1:129].tolist() == x[1:129].tolist()
    assert {
        i.width for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, LDG | STG)
    } == {Width._32}


def test_a_load_does_not_bring_what_stands_beside_it_elsewhere() -> None:
    """x[8t + 1] is loaded by itself, and beside x[8t - 3] under a condition that keeps that from being read at t = 0."""
    x = np.arange(600, dtype=np.float32)

    def pair(offset: int) -> Json:
        first = op("add", op("mul", var(T), num(8)), num(offset))
        return ["load", "f32x2", 0, ["ramp", "i32x2", first, num(4)]]

    none = ["broadcast", "f32x2", ["float", "f32", (0.0).hex()]]
    guarded = ["call", "f32x2", "if_then_else", op("lt", num(0), var(T), "bool"), pair(-3), none]
    index, kind = vector("f32", 2, op("mul", var(T), num(2)))
    k = kernel(["store", 1, index, op("add", pair(1), guarded, kind)], [x], ("f32", 128))
    want = [
        [8 * t + 1 + (8 * t - 3) * (t > 0), 8 * t + 5 + (8 * t + 1) * (t > 0)] for t in range(64)
    ]
    assert run(k, [x]).reshape(64, 2).tolist() == want


def test_lanes_of_a_variable_change_at_once() -> None:
    """acc = acc[1], acc[0] in a loop: each lane takes the other's old value."""
    x = np.arange(128, dtype=np.float32)
    acc = {**local("f32", 1), "lanes": 2}
    lanes, kind = vector("f32", 2, op("mul", var(T), num(2)))
    current = ["load", kind, 2, num(0)]
    swapped = ["shuffle", kind, [current], [1, 0]]
    turn = loop(num(301), ["store", 2, num(0), swapped])
    body = [
        "seq",
        ["store", 2, num(0), ["load", kind, 0, lanes]],
        turn,
        ["store", 1, lanes, current],
    ]
    got = run(kernel(body, [x], ("f32", 128), 1, [acc]), [x])
    assert got.reshape(64, 2).tolist() == x.reshape(64, 2)[:, ::-1].tolist()


def test_loads_of_an_unrolled_loop_are_merged() -> None:
    x = np.arange(256, dtype=np.float32)
    place = op("add", op("mul", var(T), num(4)), var(5))
    total = [
        "store",
        2,
        num(0),
        op("add", ["load", "f32", 2, num(0)], ["load", "f32", 0, place], "f32"),
    ]
    body = ["seq", loop(num(4), total), ["store", 1, var(T), ["load", "f32", 2, num(0)]]]
    k = kernel(body, [x], ("f32", 64), 1, [local("f32", 1)])
    assert run(k, [x]).tolist() == x.reshape(64, 4).sum(1).tolist()
    assert [i.width for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, LDG)] == [
        Width._128
    ]


def test_an_old_load_is_not_taken_for_a_new_one() -> None:
    """x[0] is read, written, and read again."""
    shared = local("i32", 64, "shared")
    again = ["store", ACC, var(T), op("add", ["load", "i32", ACC, var(T)], num(1))]
    body = [
        "seq",
        ["alloc", ACC],
        assign(var(T), var(T)),
        again,
        again,
        result(["load", "i32", ACC, var(T)]),
    ]
    assert run(kernel(body, [], ("i32", 64), 1, [shared]), []).tolist() == list(range(2, 66))
