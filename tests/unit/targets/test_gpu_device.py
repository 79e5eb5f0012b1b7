"""What a GPU is asked to do for a configuration and the confidences that samples have; it takes no GPU to know."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from dyce_runtime import Configuration, Session
from dyce_runtime.bundle.reader import open_bundle
from dyce_runtime.errors import PieceError, TargetError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_targets.nvidia.device import GpuDevice, bucket, buckets
from tests.bundles import CLASSES, NAMED, all_heads, expected, make_images, on
from tests.gpu_double import GpuDouble, HostExecutor

# Where a sample of the tiny bundle leaves to what was launched for it, with every exit on.
PATHS = [
    ["segment_00", "exit_03_linear"],
    ["segment_00", "exit_03_linear", "segment_01", "exit_07_linear"],
    ["segment_00", "exit_03_linear", "segment_01", "exit_07_linear", "segment_02"],
]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> GpuDouble:
    made = GpuDouble()
    monkeypatch.setattr("dyce_runtime.execution.targets.find", lambda name=None: made)
    return made


@pytest.fixture
def session(double: GpuDouble, tiny_bundle: Path) -> Iterator[Session]:
    with Session(open_bundle(tiny_bundle), None, TargetSpec(max_batch=6)) as opened:
        yield opened


@pytest.fixture
def gpu(double: GpuDouble, session: Session) -> HostExecutor:
    return double.executor


def test_a_sample_launches_the_pieces_up_to_its_exit_and_nothing_else(session: Session, gpu: HostExecutor):
    session.use("fast")
    left = set()
    for image in make_images(40):
        gpu.ran.clear()
        exit = int(session(image[None]).exit[0])
        assert gpu.ran == [(piece, 1) for piece in PATHS[exit]]
        left.add(exit)
    assert left == {0, 1, 2}


def test_exits_that_are_off_launch_no_head(session: Session, gpu: HostExecutor):
    image = make_images(1)
    for configuration, pieces in [
        (Configuration("late", on(exit7=1.0)), ["segment_00", "segment_01", "exit_07_linear", "segment_02"]),
        (Configuration("early", on(exit3=1.0)), ["segment_00", "exit_03_linear", "segment_01", "segment_02"]),
        ("full", ["full"]),
    ]:
        session.use(configuration)
        gpu.ran.clear()
        session(image)
        assert [piece for piece, _ in gpu.ran] == pieces


@pytest.mark.parametrize(("rows", "launched"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)])
def test_a_batch_runs_in_the_smallest_graph_that_holds_it(session: Session, gpu: HostExecutor, rows, launched):
    session.use("full")
    answer = session(make_images(rows))
    assert gpu.ran == [("full", launched)]
    np.testing.assert_array_equal(answer.logits, expected(make_images(rows), Configuration("full", {})).logits)


def test_those_that_stay_run_in_smaller_graphs(session: Session, gpu: HostExecutor):
    images = make_images(6)
    confidence = np.sort(all_heads(images)[1][:, 0])
    session.use(Configuration("half", on(exit3=float(confidence[1] + confidence[2]) / 2)))
    session(images)
    assert gpu.ran == [("segment_00", 6), ("exit_03_linear", 6), ("segment_01", 2), ("segment_02", 2)]


def test_nothing_is_captured_or_allocated_after_loading_however_the_knob_is_turned(session: Session, gpu: HostExecutor):
    pieces = ("segment_00", "segment_01", "segment_02", "exit_03_linear", "exit_07_linear", "full")
    assert gpu.captured == len(pieces) * len(buckets(6))
    captured, memory, random = gpu.captured, gpu.memory, Random(1)
    images = make_images(64)
    wanted: dict[tuple[str, int], int] = {}
    for _ in range(10_000):
        name, row = random.choice(list(NAMED)), random.randrange(64)
        session.use(name)
        exit = int(session(images[row : row + 1]).exit[0])
        assert wanted.setdefault((name, row), exit) == exit
    assert (gpu.captured, gpu.memory) == (captured, memory)
    for (name, row), exit in wanted.items():
        assert exit == expected(images[row : row + 1], Configuration(name, NAMED[name])).exit[0]


def test_only_confidences_come_back_until_a_sample_leaves(session: Session, gpu: HostExecutor):
    session.use(Configuration("never", on(exit3=1.0, exit7=1.0)))
    gpu.fetched = 0
    session(make_images(5))
    confidences, answers = 3 * 5 * 4, 5 * (CLASSES * 4 + 8)
    assert gpu.fetched == confidences + answers


@pytest.mark.parametrize("piece", PATHS[2])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_failure_names_the_pieces_that_it_may_be_and_the_next_call_works(
    session: Session, gpu: HostExecutor, piece: str, rows: int
):
    session.use(Configuration("never", on(exit3=1.0, exit7=1.0)))
    images = make_images(rows)
    before = session(images)

    def fail(running: str) -> None:
        if running == piece:
            raise RuntimeError("out of device memory")

    gpu.before = fail
    # What failed is known when the host waits next: at the decision behind a segment.
    step = next(step for step in ([*PATHS[0]], PATHS[1][2:], PATHS[2][4:]) if piece in step)
    with pytest.raises(PieceError, match=f"piece {' or '.join(step)} failed in gpu double: out of device memory"):
        session(images)
    gpu.before = lambda running: None
    after = session(images)
    np.testing.assert_array_equal(after.logits, before.logits)
    np.testing.assert_array_equal(after.exit, before.exit)


def test_more_samples_than_the_engines_were_built_for_are_refused(session: Session):
    with pytest.raises(TargetError, match=r"found a batch of 7; the engines were built for at most 6"):
        session.device.context(7)
    # A call runs in chunks.
    assert len(session(make_images(20)).label) == 20


def test_memory_is_freed_once_and_not_below_a_call(session: Session, gpu: HostExecutor):
    with session.device.context(2) as context:
        context.set_input("image", make_images(2))
        session.close()
        assert gpu.closed == 0
        context.run("full")
        context.wait()
    assert gpu.closed == 1
    session.close()
    assert gpu.closed == 1


def test_tensors_that_are_never_needed_together_share_memory(session: Session, gpu: HostExecutor):
    device = session.device
    assert isinstance(device, GpuDevice)
    alone = sum(-(-tensor.size * 6 // 256) * 256 for tensor in device.tensors.values())
    assert gpu.memory < alone
    lives = session.bundle.tensor_lives(session.pieces)
    places = {spec.name: (device.tensors[spec.name].address, device.tensors[spec.name].size * 6) for spec, _ in lives}
    for one, other in combinations(lives, 2):
        if one.places & other.places:
            (start, size), (begin, length) = places[one.spec.name], places[other.spec.name]
            assert start + size <= begin or begin + length <= start, (one, other)


def test_buckets_are_powers_of_two_up_to_the_largest_batch():
    assert [buckets(most) for most in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    for most in range(1, 40):
        for rows in range(1, most + 1):
            chosen = bucket(rows, most)
            assert chosen in buckets(most)
            assert rows <= chosen < max(2 * rows, 2)


def test_a_waiter_that_finds_the_device_closed_frees_it(session: Session, gpu: HostExecutor):
    """The call that ran gives its turn to a waiter, which is then the last that could free the device."""
    device: Any = session.device
    running = device.context(1)
    turn, device._turn = device._turn, Mock(wraps=device._turn)
    # Between the end of the call and its attempt to free, the waiter holds the lock.
    device._turn.acquire.side_effect = lambda blocking=True: blocking and turn.acquire()
    session.close()
    running.__exit__()
    assert gpu.closed == 0
    device._turn = turn
    with pytest.raises(PieceError, match="closed"):
        device.context(1)
    assert gpu.closed == 1


def test_memory_is_freed_where_opening_fails(tiny_bundle: Path):
    bundle = open_bundle(tiny_bundle)
    pieces = bundle.piece_specs([piece.id for piece in bundle.manifest.pieces])
    executor = HostExecutor(pieces)
    executor.capture = Mock(side_effect=TargetError("out of memory"))  # type: ignore[method-assign]
    with pytest.raises(TargetError, match="out of memory"):
        GpuDevice("double", pieces, bundle.tensor_lives(()), executor, 4)
    assert executor.closed == 1
