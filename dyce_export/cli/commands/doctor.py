"""``dyce inspect`` without a bundle: what this machine can run and build, what is missing, and how to install it."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from dyce_export.cli.console import out, print_json, print_table
from dyce_export.cli.terminal import bold

if TYPE_CHECKING:
    from dyce_targets.profiles import Profile


def show(*, json: bool) -> None:
    """Examine the machine and print the result."""
    from dyce_targets.profiles import here, profiles

    machine, states, known, own = _machine(), _states(), profiles(), here()
    if json:
        import msgspec

        devices = {name: msgspec.to_builtins(profile) for name, profile in known.items()}
        print_json("inspect", {"machine": machine, "device": own, "targets": states, "devices": devices})
        return
    _lines({name: str(value) or "unknown" for name, value in machine.items()})
    out.print()
    out.print(bold("targets"))
    _lines({state["name"]: _described(state) for state in states})
    out.print()
    if own is not None:
        _show_own(own, known[own], {state["name"] for state in states if state["available"]})
    rows = [(name, profile.title, profile.target, ", ".join(profile.precisions)) for name, profile in known.items()]
    print_table("\ndevices, as names for --target", ("name", "device", "target", "worth adding"), rows)


def _machine() -> dict[str, Any]:
    from dyce_runtime.cpu_features import advice, cpu_features
    from dyce_runtime.measure.bench import cpu_name
    from dyce_runtime.measure.machine_state import power_mode
    from dyce_targets.profiles import board

    state, features = power_mode(), cpu_features()
    return {
        "processor": f"{cpu_name()} ({platform.machine()}), {os.cpu_count()} cores",
        "instructions": "unknown" if features is None else ", ".join(features) or "no VNNI, AMX, bf16 or i8mm",
        "which means": advice(features),
        "board": board(),
        "python": platform.python_version(),
        "governor": state["cpu_governor"],
        "power mode": state["power_mode"],
    }


def _states() -> list[dict[str, Any]]:
    """Return for every target its version, the reason why it cannot run bundles here, and whether it builds engines."""
    from dyce_runtime.targets import registry

    found = []
    for name in registry.names():
        reason = registry.unavailable(name)
        state = {"name": name, "available": reason is None, "reason": reason, "version": None, "builds": False}
        if registry.unable_to_compile(name) is None:
            target = registry.get(name)
            state |= {"version": target.version(), "builds": target.engines}
        found.append(state)
    return found


def _lines(facts: dict[str, str]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        out.print(bold(f"{name:>{width}}"), f" {value}")


def _described(state: dict[str, Any]) -> str:
    if state["available"]:
        return f"{state['version']}, runs bundles here"
    if state["builds"]:
        return f"{state['version']}, builds engines here; runs none: {state['reason']}"
    return str(state["reason"])


def _show_own(name: str, profile: Profile, available: set[str]) -> None:
    """Print what can be done on this machine."""
    out.print(f"This machine is taken for {name}: {profile.title}.")
    if profile.target not in available:
        out.print(f"Often fastest on it is {profile.target}, which does not run here yet. It needs {profile.requires}:")
        for command in profile.install:
            out.print(f"  {command}", soft_wrap=True)
    added = ",".join(profile.precisions)
    out.print(f"Worth adding to a bundle: `dyce lower BUNDLE --precision {added} --data PICTURES`.")
    if profile.power:
        out.print("Before measuring, so that clocks stay where they are:")
        for command in profile.power:
            out.print(f"  {command}", soft_wrap=True)
    if profile.note:
        out.print(profile.note)
