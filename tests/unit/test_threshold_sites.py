"""Where a score is compared with a threshold: one rule, and the few places that have to spell it out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("runtime", "targets", "calibration", "dyce_export")
RULE = "leaves"

# File and function, with why it does not call the rule.
SPELLED_OUT = {
    ("runtime/dyce_runtime/program/rule.py", "leaves"): "the rule",
    ("runtime/dyce_runtime/execution/routing.py", "_run_one"): "one sample: as a branch of its hot path",
    ("targets/dyce_targets/cpu/host_context.py", "run_until_exit"): "one sample: as a branch of its hot path",
    ("targets/dyce_targets/nvidia/device.py", "run_until_exit"): "one sample: as a branch of its hot path",
    (
        "runtime/dyce_runtime/targets/trial.py",
        "_count_misrouted",
    ): "test vectors: the side of a probe",
    ("dyce_export/verification/verify.py", "_route"): "verification finds a wrong rule only with one of its own",
    ("dyce_export/savers/fitting.py", "check_parts"): "verification finds a wrong rule only with one of its own",
}
CALLS = {
    ("calibration/dyce_calibration/promises/agreement.py", "exits_taken"),
    ("calibration/dyce_calibration/report/examples.py", "_leaving_columns"),
    ("calibration/dyce_calibration/savers.py", "take_over"),
    ("calibration/dyce_calibration/search/line.py", "before"),
    ("calibration/dyce_calibration/search/line.py", "after"),
    ("calibration/dyce_calibration/search/problem.py", "leaving"),
    ("runtime/dyce_runtime/execution/routing.py", "_leave"),
    ("runtime/dyce_runtime/execution/stream.py", "_step"),
    ("runtime/dyce_runtime/measure/bench_loss.py", "_leave"),
    ("runtime/dyce_runtime/monitoring/drift.py", "replay"),
}
_ORDER = (ast.Gt, ast.Lt, ast.GtE, ast.LtE)
_SCORE, _THRESHOLD = ("score", "confidence"), ("threshold", "probe")


def functions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every node of a file with the name of the function that it stands in."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef) else name
            yield inner, child
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text()), "")


def sites() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Where a comparison is spelled out, and where the rule is called."""
    compared, called = set(), set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for function, node in functions(path):
                place = (path.relative_to(ROOT).as_posix(), function)
                text = ast.unparse(node) if isinstance(node, ast.Compare) else ""
                ordered = isinstance(node, ast.Compare) and any(isinstance(op, _ORDER) for op in node.ops)
                if ordered and any(word in text for word in _SCORE) and any(word in text for word in _THRESHOLD):
                    compared.add(place)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == RULE:
                    called.add(place)
    return compared, called


def test_scores_are_compared_with_thresholds_in_the_known_places_only():
    compared, called = sites()
    assert compared == set(SPELLED_OUT)
    assert called == CALLS
