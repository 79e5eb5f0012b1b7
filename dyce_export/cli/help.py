"""The format of ``--help``: options in groups, flags without a type, ``-h`` as an alias."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

CONTEXT = {"help_option_names": ["-h", "--help"]}

_GROUPS = {
    "Model": ("arch", "factory", "task", "class_names", "trust_pickle"),
    "How pictures are prepared": ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"),
    "Exits and savers": ("exits", "list_exits", "max_exits", "heads", "saver", "saver_classes", "esn", "pool"),
    "Pictures": ("data", "val", "classes", "allow_suspicious", "limit"),
    "Training": ("epochs", "seed"),
    "Lower precisions": ("precision", "min_agreement", "max_precision_loss"),
    "What to choose": ("costs", "method", "points", "epsilon", "delta", "max_loss", "max_cost", "conservative"),
    "Result": ("output", "force", "dry_run", "tolerance", "save", "write_cost_table", "unit", "json"),
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}


class Command(TyperCommand):
    """A command whose options are shown in groups."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return every parameter, formatted for the help text."""
        return [_dressed(param) for param in super().get_params(ctx)]


class Group(TyperGroup):
    """A command with verbs whose options are shown in groups."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return every parameter, formatted for the help text."""
        return [_dressed(param) for param in super().get_params(ctx)]


def _dressed(param: Any) -> Any:
    if param.param_type_name == "option":
        param.rich_help_panel = getattr(param, "rich_help_panel", None) or _GROUP_OF.get(param.name)
        if param.is_flag:  # newer versions of typer call its type <bool>
            param.display_type = lambda ctx: ""
        elif param.multiple:
            param.display_type = lambda ctx: "<str>, may be repeated"
    elif param.nargs == -1:
        param.display_type = lambda ctx: "<str>, one or more"
    return param
