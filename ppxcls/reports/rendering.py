"""Renders the pages of reports from their templates."""

from __future__ import annotations

from typing import Any

from ppxcls.system.errors import UserError
from ppxcls.system.packages import matplotlib_module
from ppxcls.system.paths import printable

PACKAGES_HINT = "jinja2, matplotlib and scipy, which are not all installed: pip install 'ppxcls[report]'"


class ReportError(UserError):
    """A report can't be written. The message is one line."""


def require_packages() -> None:
    """Raises ReportError if a package that reports need is not installed."""
    try:
        import jinja2  # noqa: F401  only checks that they are installed
        import scipy  # noqa: F401

        matplotlib_module()
    except ImportError:
        raise ReportError(f"a report needs {PACKAGES_HINT}") from None


def render(template: str, page: dict[str, Any]) -> str:
    """Returns the page of a template; all values are escaped.

    Args:
        template: file name of the template.
        page: values of the template.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ppxcls.reports"), autoescape=True, undefined=jinja2.ChainableUndefined
    )
    return environment.get_template(template).render(page)


def printable_text(value: Any) -> str:
    """Returns a value as text without control characters."""
    return printable(str(value))
