"""What the site needs besides the pages: links without a target on it, and docstrings as Markdown."""

import re
from typing import Any

import griffe


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace a link to a file of the repository by its text: the site has no copy of it."""
    if "/" in page.file.src_uri:  # `../` of these pages stays inside
        return markdown
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


class PlainDocstrings(griffe.Extension):
    """Docstrings are plain text: `>>>` is a doctest and no quotation, `[n][k]` a shape and no link."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence doctests, and quote shapes."""
        if obj.docstring:
            text = re.sub(r"(?m)^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", obj.docstring.value)
            obj.docstring.value = re.sub(r"(?<![`\w])\[\w+\]\[\w+\](?!`)", r"`\g<0>`", text)
