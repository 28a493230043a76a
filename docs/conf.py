"""How ``make docs`` makes a site of the Markdown of this repository (docs/adr/0046-a-site-of-the-same-pages.md).

The repository is the source folder, so that a link holds in the site as it does in a checkout. What is the order of
pages stands here, and not in the pages: these have to read well without the site.
"""

from sphinx.application import Sphinx

NAVIGATION = {
    "README": {
        "Use": ["docs/user-guide", "docs/data", "docs/own-models", "docs/what-if", "docs/interop"],
        "Understand": ["docs/concepts", "docs/architecture", "docs/limits", "docs/adr/README"],
        "Operate": ["docs/operations", "docs/monitoring", "docs/alerts"],
        "Look up": ["docs/reference", "docs/commands", "docs/values", "docs/licences", "CHANGELOG"],
        "Contribute": ["CONTRIBUTING", "CONVENTIONS"],
    },
    "docs/adr/README": {"Decisions": ["docs/adr/0*"]},
    "docs/what-if": {"Examples": ["docs/examples/bert-huge-32/whatif"]},
}
"""Page -> heading in the sidebar -> pages."""

project = html_title = "Galvatron Operator"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md"]
# Folders of a checkout that no page is in: looking through a virtual environment takes minutes.
exclude_patterns = [".*", "operator", "runtime", "tests", "charts", "crds", "galvatron-runs"]
html_theme = "furo"
html_static_path = html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = False
# `--memory` stays what is typed.
smartquotes = False
# Headings are linked to as GitHub names them, down to this level.
myst_heading_anchors = 4
# Prometheus' own lexer does not know subqueries.
suppress_warnings = ["misc.highlighting_failure"]


def add_navigation(_: Sphinx, page: str, source: list[str]) -> None:
    """Append what a page leads to; Sphinx wants it in the page's text."""
    for caption, pages in NAVIGATION.get(page, {}).items():
        listed = "\n".join(f"/{name}" for name in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{listed}\n```\n"


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", add_navigation)
