"""Regions of a forward: left out where they change nothing, named where they do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dyce_runtime.errors import CaptureError
from tests.models import Convolutions, build, captured, images


class Nested(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cuda"):
            x = self.b1(self.stem(x))
            with torch.set_grad_enabled(True), torch.autocast("cpu", enabled=False):
                x = self.b2(x)
        with torch.no_grad():
            return self.classifier(self.b4(self.b3(x)).mean((2, 3)))


def decorated(decorator: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> type[Convolutions]:
    class Decorated(Convolutions):
        @decorator
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    return Decorated


REGIONS = {
    "autocast of a GPU": decorated(torch.autocast("cuda")),
    "autocast that is off": decorated(torch.autocast("cpu", enabled=False)),
    "no_grad": decorated(torch.no_grad()),
    "enable_grad": decorated(torch.enable_grad()),
    "inference_mode": decorated(torch.inference_mode()),
    "nested": Nested,
}


@pytest.mark.parametrize("make", REGIONS.values(), ids=REGIONS)
def test_a_region_that_changes_nothing_leaves_the_modules_and_the_answers(make: type[Convolutions]) -> None:
    program = captured(make)
    paths = {path for node in program.graph.nodes for path, _ in node.meta.get("nn_module_stack", {}).values()}
    assert {"b1", "b2", "b3", "b4", "classifier"} <= paths
    expected = build(Convolutions)(images(3))
    torch.testing.assert_close(program.module(check_guards=False)(images(3)), expected, rtol=1e-5, atol=1e-5)


def test_autocast_on_the_cpu_is_named_with_its_place() -> None:
    class Narrow(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.b1(x)
            return self.classifier(x.float().mean((2, 3)))

    with pytest.raises(CaptureError, match=r"autocast to bfloat16 on the CPU, in b1.conv \(Conv2d, models.py:\d+\)"):
        captured(Narrow)
