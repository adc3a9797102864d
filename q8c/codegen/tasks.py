"""How a kernel shares a rows x columns result out to threads: tasks drawn from a queue.

A task is a block of rows by a run of column groups. Which thread runs a task, and how many there are, never
changes a result: every output is computed whole, by one task, in one order.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from q8c.codegen.builder import I64, Builder, Value, constant
from q8c.codegen.draw import draw

GRAIN = 1 << 18
"""Multiply-adds below which another task is not worth its dispatch (about 1 us)."""
TASKS_PER_THREAD = 12
"""Enough for threads that are slowed by others to be made up for."""
TASK_GRAINS = 8
"""Grains that each further task of a thread is worth: a task less is a first and a last group less."""
THREAD_ROWS = 32
"""Rows for each thread from which on it takes rows, and all columns: what it reads is then what it wrote. Below that it
takes columns, as weights are more to read than rows."""
RUN_BYTES = (32 << 10, 256 << 10)
"""Weights of a run of columns that more than one tile of rows goes over: the first run comes late into the cache, so
it must be short beside the work on it, which grows with the rows; long runs write whole stretches of result rows."""
RUN_BYTES_PER_ROW = 256


@dataclass(frozen=True)
class Grid:
    """The work of one kernel.

    Attributes:
        groups: column groups, never split.
        work: multiply-adds per row over all columns.
        tile_rows: rows worth keeping together.
        block_rows: rows that still fit the second-level cache; no task has more.
        group_bytes: weights of one column group, if runs of them must stay in the cache.
        grain: multiply-adds below which another task is not worth its dispatch.
        thread_rows: rows for each thread from which on it takes rows, and all columns.
    """

    groups: int
    work: int
    tile_rows: int
    block_rows: int
    group_bytes: int = 0
    grain: int = GRAIN
    thread_rows: int = THREAD_ROWS


@dataclass(frozen=True)
class Task:
    """A block of rows and a run of column groups; `next_group` begins the run this thread is likely to draw next."""

    first_row: Value
    rows: Value
    first_group: Value
    last_group: Value
    next_group: Value


def for_tasks(b: Builder, grid: Grid, rows: Value, threads: Value, queue: Value,
              body: Callable[[Task], None]) -> None:
    """Emit the loop in which a thread draws tasks until none is left. `rows` must be positive.

    Tasks are numbered along the columns first, so that a thread's part of them is a stretch of rows where it can be.
    """
    groups = constant(I64, grid.groups)
    # Weights arrive about as fast as a tile of rows is multiplied by them.
    grains = b.div(b.mul(b.add(rows, grid.tile_rows), grid.work), grid.grain)
    each = b.imin(b.imax(b.div(grains, b.mul(threads, TASK_GRAINS)), 1), TASKS_PER_THREAD)
    wanted = b.select(b.icmp("==", threads, 1), 1, b.imin(b.mul(threads, each), b.add(grains, 1)))
    run_groups = groups
    if grid.group_bytes:
        run_bytes = b.imin(b.imax(b.mul(rows, RUN_BYTES_PER_ROW), RUN_BYTES[0]), RUN_BYTES[1])
        reused = b.icmp(">", rows, grid.tile_rows)
        run_groups = b.select(reused, b.imax(b.div(run_bytes, grid.group_bytes), 1), groups)
    each = b.select(b.icmp(">=", rows, b.mul(threads, grid.thread_rows)), threads, 1)
    blocks = b.mul(b.ceildiv(b.ceildiv(rows, grid.block_rows), each), each)
    runs = b.imax(b.imin(b.ceildiv(wanted, blocks), groups), b.ceildiv(groups, run_groups))
    count = b.mul(runs, blocks)

    def task(drawn: list[Value]) -> list[Value]:
        block = b.div(drawn[0], runs)
        # Threads begin at different columns: weights that another core has just read come from there, and late (two
        # threads took 4 percent longer for 128 tokens on AMX).
        part = b.div(b.mul(block, each), blocks)
        run = b.rem(b.add(drawn[0], b.div(b.mul(part, runs), each)), runs)
        first_row, end_row = _part(b, rows, block, blocks)
        following, _ = _part(b, groups, b.rem(b.add(run, 1), runs), runs)
        body(Task(first_row, b.sub(end_row, first_row), *_part(b, groups, run, runs), following))
        return [draw(b, queue, count)]

    b.while_([draw(b, queue, count)], lambda drawn: b.icmp(">=", drawn[0], 0), task)


def _part(b: Builder, total: Value, index: Value, count: Value) -> tuple[Value, Value]:
    """Part `index` of `total` things in `count` parts as even as can be: its first and the one after its last."""
    return b.div(b.mul(total, index), count), b.div(b.mul(total, b.add(index, 1)), count)


def for_tiles(b: Builder, rows: Value, most: int, body: Callable[[Value, Value, Value], None]) -> None:
    """Cut `rows` into the fewest tiles of at most `most` rows, as even as can be, so that no tile is left small.

    `body(first, size, count)` is emitted once and runs for each size in use: `count` tiles of `size` rows from `first`.
    """
    tiles = b.ceildiv(rows, most)
    size = b.div(rows, tiles)
    larger = b.rem(rows, tiles)
    with b.range(0, 2) as phase:
        first_phase = b.icmp("==", phase, 0)
        count = b.select(first_phase, larger, b.sub(tiles, larger))
        first = b.select(first_phase, 0, b.mul(larger, b.add(size, 1)))
        with b.if_(b.icmp(">", count, 0)):
            body(first, b.select(first_phase, b.add(size, 1), size), count)
