"""What the site needs besides the pages: links without a target on it, and doctests as code."""

import re
from typing import Any

import griffe


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace a link to a file of the repository by its text: the site has no copy of it."""
    if "/" in page.file.src_uri:  # `../` of these pages stays inside
        return markdown
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


class Doctests(griffe.Extension):
    """Shows the doctests of a docstring as code; Markdown takes `>>>` for a quotation."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence each block of an object's docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", obj.docstring.value)
