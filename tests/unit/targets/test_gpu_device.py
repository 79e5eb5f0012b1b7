"""What a GPU is asked to do for a configuration and the confidences that samples have; it takes no GPU to know."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from dyce_runtime import Configuration, Session
from dyce_runtime.bundle.reader import open_bundle
from dyce_runtime.errors import PieceError, TargetError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.trace import head_answers
from dyce_runtime.measure import batching, piece_costs
from dyce_runtime.measure.batching import measure_best_batch, measure_compaction
from dyce_runtime.measure.contenders import make_contenders
from dyce_runtime.measure.piece_costs import measure_times
from dyce_targets.nvidia.device import GpuDevice, bucket, buckets
from tests.bundles import CLASSES, NAMED, Clock, all_heads, expected, make_images, on
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
    monkeypatch.setattr("dyce_runtime.targets.registry.find", lambda name=None: made)
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


# --- time passes when somebody waits ---------------------------------------------------------------------------------


@pytest.fixture
def clock(gpu: HostExecutor, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of all that measures; the GPU turns it when it computes, which is when the host waits, never at a launch."""
    made = Clock()
    gpu.before = made.run
    fake = SimpleNamespace(perf_counter=lambda: made.now)
    for module in (piece_costs, batching):
        monkeypatch.setattr(module, "time", fake)
    return made


def test_a_piece_costs_what_the_gpu_takes_not_what_a_launch_takes(session: Session, clock: Clock):
    clock |= {"segment_00": 0.004, "segment_01": 0.003, "segment_02": 0.002, "full": 0.008, "exit_03_linear": 0.0002}
    found = measure_times(session, [make_images(4)])
    assert found.segments == pytest.approx({"3": 4.0, "7": 3.0, "final": 2.0})
    assert found.heads["3", "linear"] == pytest.approx(0.2)
    assert found.uncut == pytest.approx(8.0)


def test_samples_are_moved_where_the_next_graph_takes_less(session: Session, gpu: HostExecutor, clock: Clock):
    class Counting(list[tuple[str, int]]):
        def append(self, one: tuple[str, int]) -> None:
            clock.pass_by(0.001 * one[1])
            super().append(one)

    gpu.ran = Counting()
    assert measure_compaction(session, make_images(6)) == {"3": 1, "7": 1}, "moving takes no time here"


def test_a_stream_fetches_no_more_than_calls_do(session: Session, gpu: HostExecutor):
    """What waits for others stays on the device."""
    session.use(Configuration("half", on(exit3=0.6, exit7=0.6)))
    images = make_images(48)
    gpu.fetched = 0
    alone = [session(images[start : start + 6]) for start in range(0, 48, 6)]
    by_calls, gpu.fetched = gpu.fetched, 0
    streamed = list(session.stream(iter(images), batch=6, in_flight=24))
    assert [int(one.exit[0]) for one in streamed] == np.concatenate([one.exit for one in alone]).tolist()
    assert gpu.fetched < 1.2 * by_calls


def test_more_samples_than_the_device_takes_run_in_parts_wherever_the_whole_program_runs(
    session: Session, gpu: HostExecutor
):
    assert session.device.max_rows == 6
    images = make_images(20)
    said = head_answers(session.device, session.manifest, {"image": images})
    logits, scores = all_heads(images)
    for column, head in enumerate(said):
        np.testing.assert_allclose(said[head].logits, logits[:, column], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(said[head].score, scores[:, column], rtol=1e-5)
    assert max(rows for _, rows in gpu.ran) == 6
    assert list(session.stream(iter(images), batch=16)), "a stream, too"
    assert measure_best_batch(session, images) <= 6
    assert len(make_contenders(session, [], chain=True)[1].run(images)[0]) == 20


def test_moving_that_changes_no_graph_is_left_out(session: Session, gpu: HostExecutor):
    """Of six samples one leaves: five run in the graph of six."""
    images = make_images(6)
    confidence = np.sort(all_heads(images)[1][:, 0])
    session.use(Configuration("one leaves", on(exit3=float(confidence[4] + confidence[5]) / 2)))
    moved = []
    copy = gpu.copy
    gpu.copy = lambda *arguments: (moved.append(arguments), copy(*arguments))[1]  # type: ignore[method-assign]
    result = session(images)
    assert (result.exit == 0).sum() == 1
    assert moved == []
    assert [rows for _, rows in gpu.ran] == [6, 6, 6, 6]


@pytest.mark.parametrize("most", [12, 32])
def test_a_device_may_take_more_than_eight(double: GpuDouble, tiny_bundle: Path, most: int):
    with Session(open_bundle(tiny_bundle), None, TargetSpec(max_batch=most)) as session:
        session.use("fast")
        images = make_images(3 * most + 1)
        answer = expected(images, session.configuration)
        np.testing.assert_array_equal(session(images).exit, answer.exit)
        streamed = list(session.stream(iter(images), batch=most, in_flight=2 * most))
        assert [int(one.exit[0]) for one in streamed] == answer.exit.tolist()
        assert max(rows for _, rows in double.executor.ran) == most
