"""Exit points: the numbered list of places where a model can be cut, one per repeated block.

No architecture is treated specially. The captured graph tells after which nodes few activations are alive
(:mod:`dyce_export.graph.liveness`) and which module a node belongs to; an exit point is the end of a module at such a
node. Of the modules that end at a possible cut, the *repeated unit* is kept:

* a module most of whose work is done by smaller candidates inside it is a container (a stage), not a unit; all
  modules of one class are treated like the majority of them, weighted by work;
* lists that do less than a tenth of the work (stems, downsampling, token-only blocks) are left out;
* of two points with no work between them the later one is kept.

The search considers modules with a numeric name and one live tensor first, then the other entries of :data:`_TIERS`,
until it finds at least three points with no more than 60 % of the work between any two neighbours.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch.export import ExportedProgram
from torch.fx import Node

from dyce_export.graph.capture import input_node, output_nodes
from dyce_export.graph.liveness import MAX_LIVE, batch_axis, live_activations, rows_per_sample
from dyce_export.graph.macs import count_macs
from dyce_runtime.errors import CaptureError, ExitPointError

_LEAST_WORK_BETWEEN = 1e-3
_LEAST_WORK_OF_A_LIST = 0.1
_LARGEST_GAP = 0.6


@dataclass(frozen=True)
class ExitPoint:
    """A place where the backbone can be cut.

    Attributes:
        number: position in execution order, starting at 1.
        module: path of the module that ends here.
        nodes: names of the graph nodes whose activations are alive here.
        shapes: shapes of these activations without the batch axis, wherever that is; rows that were folded into the
            batch axis have an axis of their own.
        macs: multiply-accumulates of one sample from the image to here.
        share: ``macs`` divided by those of the whole model.
    """

    number: int
    module: str
    nodes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    macs: int
    share: float


@dataclass(frozen=True)
class ExitPoints:
    """All exit points of a model, and the multiply-accumulates of the whole model for one sample."""

    points: tuple[ExitPoint, ...]
    total_macs: int

    def require(self) -> tuple[ExitPoint, ...]:
        """Return the points; raise CaptureError if there are none."""
        if not self.points:
            raise CaptureError(
                "the model has no place where it can be cut: no module ends between two parts of the work with at most "
                f"{MAX_LIVE} activations alive that keep the samples of a batch apart"
            )
        return self.points

    def select(self, wanted: Sequence[str]) -> list[ExitPoint]:
        """Return the points that ``wanted`` names by number or module.

        Raises:
            ExitPointError: ``wanted`` is empty, names an unknown point, repeats one, or is not in ascending order.
            CaptureError: the model has no exit points.
        """
        if not wanted:
            raise ExitPointError("no exits were given; expected numbers or module names, such as 3,7,12")
        self.require()
        chosen = [self._find(word.strip()) for word in wanted]
        for before, after in pairwise(chosen):
            if after.number == before.number:
                raise ExitPointError(f"exit {after.number} ({after.module}) is named twice; expected each exit once")
            if after.number < before.number:
                ordered = ",".join(str(point.number) for point in sorted(chosen, key=lambda point: point.number))
                raise ExitPointError(
                    f"exit {after.number} ({after.module}) is listed after exit {before.number} ({before.module}); "
                    "expected ascending order",
                    hint=f"Use --exits {ordered}.",
                )
        return chosen

    def _find(self, word: str) -> ExitPoint:
        see = "`--list-exits` prints them all."
        for point in self.points:
            if word in (str(point.number), point.module):
                return point
        if re.fullmatch(r"[+-]?\d+", word):
            raise ExitPointError(f"there is no exit point {word}; this model has 1 to {len(self.points)}", hint=see)
        raise ExitPointError(
            f"{word!r} names no exit point; expected a number from 1 to {len(self.points)} or a module such as "
            f"{self.points[len(self.points) // 2].module!r}",
            hint=see,
        )


@dataclass(frozen=True)
class _Module:
    """A module that ran.

    Attributes:
        end: index of the last node that belongs to it.
        macs: multiply-accumulates of one sample inside it.
        leaf: whether no other module ran inside it.
        cut: the activations that are alive after its last node; empty if the graph cannot be cut there.
    """

    path: str
    type: str
    end: int
    macs: int
    leaf: bool
    cut: tuple[Node, ...]

    def __contains__(self, other: _Module) -> bool:
        return other.path.startswith(self.path + ".")

    @property
    def list_pattern(self) -> str:
        """Return the path with numbers replaced, which names the list it belongs to: ``stages.*.blocks.*``."""
        return re.sub(r"\d+", "*", self.path)


def _numeric(module: _Module) -> bool:
    return module.path.rsplit(".", 1)[-1].isdigit() and not module.leaf


def _numbered(module: _Module) -> bool:
    return module.path[-1:].isdigit() and not module.leaf


def _block(module: _Module) -> bool:
    return not module.leaf


def _any(module: _Module) -> bool:
    return True


# What counts as a block, and how many tensors a cut may carry. The first entry whose blocks spread over the model wins.
_TIERS: tuple[tuple[Callable[[_Module], bool], int], ...] = (
    (_numeric, 1),
    (_numbered, 1),
    (_numeric, MAX_LIVE),
    (_numbered, MAX_LIVE),
    (_block, 1),
    (_any, 1),
    (_any, MAX_LIVE),
)


def find_exit_points(program: ExportedProgram) -> ExitPoints:
    """Number the exit points of a captured program.

    Raises:
        CaptureError: the model contains no multiplications.
    """
    macs = count_macs(program)
    nodes = list(program.graph.nodes)
    cumulative = []
    total = 0
    for node in nodes:
        total += macs.get(node.name, 0)
        cumulative.append(total)
    if total == 0:
        raise CaptureError("the model has no convolution, linear layer or matrix product; there is nothing to split")
    (logits,) = output_nodes(program)  # once the logits are alive, no work remains to be skipped
    modules = [m for m in _modules(program, macs) if m.cut and logits not in m.cut and cumulative[m.end] > 0 and m.path]
    best: list[_Module] = []
    for is_block, max_live in _TIERS:
        units = _units([m for m in modules if is_block(m) and len(m.cut) <= max_live], total)
        units = _drop_idle(units, cumulative, total)
        if _largest_gap(units, cumulative, total) < _largest_gap(best, cumulative, total):
            best = units
        if len(best) >= 3 and _largest_gap(best, cumulative, total) <= _LARGEST_GAP:
            break
    return ExitPoints(
        points=tuple(_point(program, n, unit, cumulative[unit.end], total) for n, unit in enumerate(best, start=1)),
        total_macs=total,
    )


def _point(program: ExportedProgram, number: int, unit: _Module, macs: int, total: int) -> ExitPoint:
    image = input_node(program)
    shapes = []
    for node in unit.cut:
        rows, axis = rows_per_sample(node, image), batch_axis(node)
        rest = [size for index, size in enumerate(node.meta["val"].shape) if index != axis]
        shapes.append((*([] if rows == 1 else [rows]), *rest))
    return ExitPoint(
        number=number,
        module=unit.path,
        nodes=tuple(node.name for node in unit.cut),
        shapes=tuple(shapes),
        macs=macs,
        share=macs / total,
    )


def _modules(program: ExportedProgram, macs: dict[str, int]) -> list[_Module]:
    """Return every module that ran, with its last node and the cut after that node."""
    cuts = live_activations(program)
    found: dict[str, _Module] = {}
    for index, node in enumerate(program.graph.nodes):
        if node.op != "call_function":
            continue
        for path, type in node.meta.get("nn_module_stack", {}).values():
            work = macs.get(node.name, 0) + (found[path].macs if path in found else 0)
            found[path] = _Module(path, str(type), index, work, leaf=True, cut=cuts[index] or ())
    parents = {path.rsplit(".", n)[0] for path in found for n in range(1, path.count(".") + 1)}
    modules = [replace(module, leaf=module.path not in parents) for module in found.values()]
    return sorted(modules, key=lambda module: module.end)


def _units(candidates: list[_Module], total: int) -> list[_Module]:
    """Return the repeated units among nested candidates (see the docstring of this file)."""
    inside = {c.path: sum(m.macs for m in _outermost([m for m in candidates if m in c])) for c in candidates}
    balance: dict[str, int] = defaultdict(int)
    for c in candidates:
        balance[_kind(c)] += c.macs if inside[c.path] > 0.5 * c.macs else -c.macs
    units = _outermost([c for c in candidates if balance[_kind(c)] <= 0])
    work: dict[str, int] = defaultdict(int)
    for unit in units:
        work[unit.list_pattern] += unit.macs
    return [unit for unit in units if work[unit.list_pattern] >= _LEAST_WORK_OF_A_LIST * total]


def _kind(module: _Module) -> str:
    """Return the class of a module, or its path: torch's own containers have no role, so each counts on its own."""
    return module.path if module.type.startswith("torch.nn.") else module.type


def _outermost(modules: list[_Module]) -> list[_Module]:
    return [m for m in modules if not any(m in other for other in modules)]


def _drop_idle(units: list[_Module], cumulative: list[int], total: int) -> list[_Module]:
    kept: list[_Module] = []
    for unit in units:
        if kept and cumulative[unit.end] - cumulative[kept[-1].end] < _LEAST_WORK_BETWEEN * total:
            kept.pop()
        kept.append(unit)
    return kept


def _largest_gap(units: list[_Module], cumulative: list[int], total: int) -> float:
    ends = [0, *(cumulative[unit.end] for unit in units), total]
    return max(after - before for before, after in pairwise(ends)) / total
