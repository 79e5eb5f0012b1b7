"""``python -m dyce_export`` is ``dyce-export``."""

from dyce_export.cli.main import dyce_export

dyce_export()
