"""What others build on: names and parameters. A change here belongs into the changelog."""

from __future__ import annotations

import inspect

import pytest

import dyce_export
import dyce_runtime
from dyce_runtime.control.governor import LatencyGovernor
from dyce_runtime.control.work_cap import WorkCap
from dyce_runtime.execution import contracts

NAMES = {
    dyce_runtime: "Bundle Configuration DyceError ExitSetting Result Session load open_bundle",
    dyce_export: "export",
}
PARAMETERS = {
    dyce_runtime.load: "path target precision threads pool mode max_batch max_memory allow_untrained check",
    dyce_runtime.open_bundle: "path check_hashes",
    dyce_runtime.Session.__call__: "self images",
    dyce_runtime.Session.use: "self configuration",
    dyce_runtime.Session.stream: "self images batch in_flight",
    dyce_runtime.Session.preprocess: "self images",
    dyce_runtime.Session.run_uncut: "self images",
    dyce_runtime.Session.attach: "self observer",
    dyce_export.export: "module exits output input_size savers data val force tolerance esn classes task "
    "allow_suspicious input_description",
    WorkCap.__init__: "self session max_share max_per_second clock",
}
FIELDS = {
    dyce_runtime.Configuration: "name exits gates",
    dyce_runtime.ExitSetting: "head threshold",
    dyce_runtime.Result: "logits label confidence exit configuration exit_ids",
}
# What a target of another package offers, and what it may rely on.
CONTRACT = {
    contracts.Target: "available best_batch compile compiles open version",
    contracts.Device: "close context",
    contracts.ExecutionContext: "append computed_rows copy gather keep read run run_until_exit set_input wait",
}


@pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
def test_the_names_of_a_package_are_these(module):
    assert sorted(module.__all__) == NAMES[module].split()
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda function: function.__qualname__)
def test_the_parameters_of_a_function_are_these_in_this_order(function):
    assert list(inspect.signature(function).parameters) == PARAMETERS[function].split()


@pytest.mark.parametrize("struct", FIELDS, ids=lambda struct: struct.__name__)
def test_the_fields_of_a_value_are_these_in_this_order(struct):
    assert list(struct.__struct_fields__) == FIELDS[struct].split()


@pytest.mark.parametrize("protocol", CONTRACT, ids=lambda protocol: protocol.__name__)
def test_the_methods_of_the_contract_are_these_and_each_says_what_it_is_for(protocol):
    methods = {name: own for name, own in vars(protocol).items() if inspect.isfunction(own) and name[0] != "_"}
    assert sorted(methods) == CONTRACT[protocol].split()
    assert all(inspect.getdoc(method) for method in methods.values())


def test_what_steers_a_session_ends_with_its_block():
    for kind in (LatencyGovernor, WorkCap):
        assert {"__enter__", "__exit__", "close"} <= {*dir(kind)}
