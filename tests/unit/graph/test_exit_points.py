from functools import cache
from itertools import pairwise

import pytest
import timm
import torch.nn.functional as F
from torch import Tensor, nn

from dyce_export.graph.capture import capture
from dyce_export.graph.exit_points import ExitPoint, ExitPoints, find_exit_points
from dyce_runtime.errors import CaptureError, ExitPointError
from tests.models import (
    Block,
    Branches,
    Chain,
    Convolutions,
    Folded,
    LateToken,
    Shared,
    Tokens,
    captured,
    program_of,
)


@cache
def points_of(name: str, edge: int) -> ExitPoints:
    """A timm model on small pictures; its blocks are the same as on large ones."""
    fixed_size = {"img_size": edge} if name.startswith(("vit", "swin")) else {}
    return find_exit_points(capture(timm.create_model(name, **fixed_size).eval(), (3, edge, edge)))


@cache
def points_in(make: type[nn.Module]) -> ExitPoints:
    return find_exit_points(program_of(make))


ALL = [("resnet50", 224), ("vit_tiny_patch16_224", 32), ("convnext_tiny", 64), ("efficientnet_b0", 64), ("vgg11", 64)]


@pytest.mark.parametrize(
    ("name", "edge", "count", "first", "last"),
    [
        ("resnet50", 224, 16, "layer1.0", "layer4.2"),
        ("vit_tiny_patch16_224", 32, 12, "blocks.0", "blocks.11"),
        ("convnext_tiny", 64, 18, "stages.0.blocks.0", "stages.3.blocks.2"),
        ("efficientnet_b0", 64, 16, "blocks.0.0", "blocks.6.0"),
        pytest.param(
            *("swin_tiny_patch4_window7_224", 56, 12, "layers.0.blocks.0", "layers.3.blocks.1"), marks=pytest.mark.slow
        ),
        pytest.param("mobilevit_xxs", 256, 10, "stages.0.0", "stages.4.1", marks=pytest.mark.slow),
    ],
)
def test_there_is_one_exit_point_per_repeated_block(name, edge, count, first, last):
    points = points_of(name, edge).points
    assert len(points) == count
    assert (points[0].module, points[-1].module) == (first, last)
    assert all(len(point.nodes) == 1 for point in points)


def test_a_plain_stack_of_layers_has_exit_points():
    points = points_of("vgg11", 64).points
    assert len(points) >= 8
    assert points[0].module == "features.2"


def test_densely_connected_blocks_have_exit_points_between_them():
    model = timm.create_model("densenet121", block_config=(2, 2, 2, 2), growth_rate=8).eval()
    modules = [point.module for point in find_exit_points(capture(model, (3, 64, 64))).points]
    assert {f"features.denseblock{n}" for n in (1, 2, 3, 4)} <= set(modules)


@pytest.mark.parametrize(("name", "edge"), ALL)
def test_work_grows_from_point_to_point_up_to_the_whole(name, edge):
    found = points_of(name, edge)
    macs = [point.macs for point in found.points]
    assert all(before < after for before, after in pairwise(macs))
    assert [point.number for point in found.points] == list(range(1, len(macs) + 1))
    assert all(0 < point.share <= 1 and point.share == point.macs / found.total_macs for point in found.points)


def test_resnet50_has_the_macs_that_everybody_knows():
    assert points_of("resnet50", 224).total_macs == pytest.approx(4.09e9, rel=0.01)


def test_a_point_knows_shapes_and_work_in_closed_form():
    stem, block, classifier = 256 * 8 * 27, 256 * 8 * 72, 8 * 5
    found = points_in(Convolutions)
    assert found.total_macs == stem + 4 * block + classifier
    assert [point.macs for point in found.points] == [stem + n * block for n in (1, 2, 3, 4)]
    assert {point.shapes for point in found.points} == {((8, 16, 16),)}


# --- hand-written models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "modules"),
    [
        (Convolutions, ["b1", "b2", "b3", "b4"]),
        (Chain, ["2", "6", "10", "17"]),
        (Shared, ["again", "blocks.0", "blocks.1"]),
        (Tokens, [f"blocks.{n}" for n in range(3)]),
        (LateToken, ["blocks.0", "blocks.1", "late.0"]),
        (Branches, [f"steps.{n}" for n in range(4)]),
        (Folded, [f"blocks.{n}" for n in range(4)]),
    ],
)
def test_hand_written_models_have_an_exit_point_per_step(make, modules):
    assert [point.module for point in points_in(make).points] == modules


def test_a_module_that_runs_several_times_ends_where_it_ran_last():
    stem, block = 256 * 8 * 27, 256 * 8 * 72
    assert points_in(Shared).points[0].macs == stem + 3 * block


def test_rows_that_were_folded_into_the_batch_have_an_axis_of_their_own():
    assert {point.shapes for point in points_in(Folded).points} == {((4, 8, 8, 8),)}


def test_a_list_that_does_little_of_the_work_has_no_exit_points():
    class Stemmed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(Block(3), Block(3))
            self.widen = nn.Conv2d(3, 16, 1)
            self.blocks = nn.Sequential(*(Block(16) for _ in range(3)))
            self.classifier = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.blocks(self.widen(self.stem(x))).mean((2, 3)))

    assert [point.module for point in points_in(Stemmed).points] == ["blocks.0", "blocks.1", "blocks.2"]


def test_every_stream_of_a_branched_model_is_carried():
    assert {point.shapes for point in points_in(Branches).points} == {((4, 16, 16), (8, 8, 8))}


@pytest.mark.parametrize("make", [Convolutions, Chain, Tokens, Folded])
def test_no_exit_point_stands_behind_the_classifier(make):
    assert all((5,) not in point.shapes for point in points_in(make).points)


def test_a_model_without_work_has_nothing_to_split():
    class Idle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x).mean((2, 3))

    with pytest.raises(CaptureError, match="nothing to split"):
        find_exit_points(captured(Idle))


def test_a_model_of_one_convolution_cannot_be_cut():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3))

    with pytest.raises(CaptureError, match="no place where it can be cut"):
        find_exit_points(captured(Single)).require()


# --- naming exits ----------------------------------------------------------------------------------------------------

MODULES = ("stem.1", "blocks.0", "blocks.1", "blocks.2")
POINTS = ExitPoints(
    tuple(ExitPoint(n, module, ("x",), ((8,),), 10 * n, n / 5) for n, module in enumerate(MODULES, start=1)), 50
)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (["1", "3"], [1, 3]),
        (["blocks.0", "blocks.2"], [2, 4]),
        (["stem.1", "4"], [1, 4]),
        ([" 2 ", "\tblocks.1"], [2, 3]),
        (["1", "2", "3", "4"], [1, 2, 3, 4]),
    ],
)
def test_exits_are_named_by_number_or_module(wanted, numbers):
    assert [point.number for point in POINTS.select(wanted)] == numbers


@pytest.mark.parametrize(
    ("wanted", "message", "hint"),
    [
        ([], "no exits were given", ""),
        (["0"], "no exit point 0; this model has 1 to 4", "--list-exits"),
        (["5"], "no exit point 5; this model has 1 to 4", "--list-exits"),
        (["-1"], "no exit point -1; this model has 1 to 4", "--list-exits"),
        (["2", "2"], r"exit 2 \(blocks.0\) is named twice", ""),
        (["2", "blocks.0"], r"exit 2 \(blocks.0\) is named twice", ""),
        (["4", "2", "3"], r"exit 2 \(blocks.0\) is listed after exit 4 \(blocks.2\)", "--exits 2,3,4"),
        (["2.5"], "'2.5' names no exit point; expected a number from 1 to 4 or a module such as 'blocks.1'", "--list"),
        (["blocks"], "'blocks' names no exit point", "--list-exits"),
        (["1", ""], "'' names no exit point", "--list-exits"),
    ],
)
def test_a_mistake_in_the_exits_is_named(wanted, message, hint):
    with pytest.raises(ExitPointError, match=message) as caught:
        POINTS.select(wanted)
    assert hint in caught.value.hint
