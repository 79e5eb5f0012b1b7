import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from dyce_export.graph.capture import DECOMPOSITIONS, capture
from dyce_export.graph.exit_points import find_exit_points
from dyce_export.graph.layout import Layout, find_layout
from tests.examples import few
from tests.models import Branches, Convolutions, Folded, HandNormed, Tokens, captured, node, program_of


def layouts(program) -> list[list[Layout]]:
    """Of every tensor at every exit point."""
    points = find_exit_points(program).points
    return [
        [find_layout(node(program, name), shape) for name, shape in zip(p.nodes, p.shapes, strict=True)] for p in points
    ]


@pytest.mark.parametrize(
    ("make", "axis", "pooled"),
    [
        (Convolutions, 1, (2, 3)),
        (Branches, 1, (2, 3)),
        (Tokens, 2, (1,)),
        (HandNormed, 2, (1,)),
        (Folded, 2, (1, 3, 4)),
    ],
    ids=["pictures", "two streams", "tokens", "tokens and a hand-written norm", "rows in the batch"],
)
def test_heads_average_over_everything_but_the_channels(make, axis, pooled):
    for at_exit in layouts(program_of(make)):
        for layout in at_exit:
            assert (layout.channel_axis, layout.pooled) == (axis, pooled)
            assert layout.reason.startswith(("read by", "made by"))


@pytest.mark.parametrize(
    ("name", "edge", "options"),
    [
        ("swin_tiny_patch4_window7_224", 56, {"img_size": 56, "depths": (2, 2), "num_heads": (2, 4)}),
        ("test_mambaout", 64, {}),
    ],
)
def test_channels_last_pictures_are_averaged_over_height_and_width(name, edge, options):
    program = capture(timm.create_model(name, **options).eval(), (3, edge, edge))
    found = [(layout.channel_axis, layout.pooled) for at_exit in layouts(program) for layout in at_exit]
    assert set(found) == {(3, (1, 2))}


class Signals(nn.Module):
    """Channels before positions: (B, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3)))
        self.classifier = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(x.flatten(2)).mean(2))


def test_sequences_with_channels_first_are_averaged_over_positions():
    found = [(layout.channel_axis, layout.pooled) for at_exit in layouts(captured(Signals)) for layout in at_exit]
    assert set(found) == {(1, (2,))}


def test_a_vector_is_not_averaged():
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    program = captured(Vectors)
    layout = find_layout(node(program, "relu"), (8,))
    assert (layout.channel_axis, layout.pooled) == (1, ())


def test_without_any_hint_the_usual_order_is_assumed_and_said():
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(x).sum((2, 3))

    program = torch.export.export(Opaque(), (torch.randn(2, 3, 4, 4),), dynamic_shapes=({0: Dim.DYNAMIC},))
    layout = find_layout(node(program, "sigmoid"), (3, 4, 4))
    assert layout == Layout(1, (2, 3), "assumed: channels first")


# --- any order of axes, as long as something says where the channels end up ------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("permute"), st.permutations([0, 1, 2, 3])),
        st.sampled_from([("relu", None), ("flatten", None), ("unflatten", None), ("add", None)]),
    ),
    min_size=1,
    max_size=5,
)


class Moving(nn.Module):
    """Moves the channel axis about, then reads it with a linear layer or a convolution.

    Returns every activation; ``axes`` says, after ``forward``, where each has its channels.
    """

    def __init__(self, steps, reader: str) -> None:
        super().__init__()
        self.steps, self.reader = steps, reader
        self.linear, self.conv = nn.Linear(6, 5), nn.Conv1d(6, 5, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(x)
        axis, activations, self.axes = 1, [x], [1]
        for step, order in self.steps:
            if step == "permute":
                order = [0, *(o for o in order if 0 < o < x.ndim)]
                x, axis = x.permute(order), order.index(axis)
            elif step == "flatten" and x.ndim == 4 and axis in (1, 3):
                x, axis = (x.flatten(2), 1) if axis == 1 else (x.flatten(1, 2), 2)
            elif step == "unflatten" and x.ndim == 3:
                x, axis = (x.unflatten(2, (-1, 2)), 1) if axis == 1 else (x.unflatten(1, (-1, 2)), 3)
            elif step == "add":
                x = x + torch.ones(x.shape[1:])
            else:
                x = torch.tanh(x)
            activations.append(x)
            self.axes.append(axis)
        x = x.movedim(axis, 1).flatten(2)
        x = self.conv(x).mean(2) if self.reader == "conv" else self.linear(x.transpose(1, 2)).mean(1)
        return [x, *activations]


@few(8)
@given(STEPS, st.sampled_from(["conv", "linear"]), st.sampled_from([(4, 8), (6, 6), (2, 6)]))
def test_the_channel_axis_is_followed_through_permutations_and_views(steps, reader, size):
    model = Moving(steps, reader)
    program = torch.export.export(model, (torch.randn(2, 6, *size),), dynamic_shapes=({0: Dim.DYNAMIC},))
    program = program.run_decompositions(DECOMPOSITIONS)
    for activation, axis in zip(program.graph.output_node().args[0][1:], model.axes, strict=True):
        shape = tuple(activation.meta["val"].shape[1:])
        layout = find_layout(activation, shape)
        assert layout.channel_axis == axis
        assert sorted((axis, *layout.pooled)) == list(range(1, len(shape) + 1))


class AffineMixer(nn.Module):
    """Blocks as in ResMLP: an affine norm without statistics, then a linear layer over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.scale = nn.ParameterList([nn.Parameter(torch.ones(1, 1, 6)) for _ in range(2)])
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 16)) for _ in range(2)])
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for scale, block in zip(self.scale, self.blocks, strict=True):
            x = x + block((x * scale).transpose(1, 2)).transpose(1, 2)
        return self.classifier(x.mean(1))


def test_a_parameter_with_one_number_per_channel_shows_where_they_are():
    program = capture(AffineMixer().eval(), (3, 16, 16))
    tokens = next(
        node for node in program.graph.nodes if node.op == "call_function" and "transpose" in str(node.target)
    )
    assert find_layout(tokens, (16, 6)).channel_axis == 2
