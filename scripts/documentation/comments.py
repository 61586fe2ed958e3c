"""Documents attributes with the comment beside them, as with a docstring below: ``local_lr: float  # η_t``."""

import io
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import Any

import griffe


@lru_cache
def load_comments(path: Path) -> dict[int, str]:
    """Returns the comments that stand behind code in a file, by line, without directives to tools."""
    text = path.read_text(encoding="utf-8")
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        comment = token.string.removeprefix("#").strip()
        behind = token.line[: token.start[1]].strip()
        if token.type == tokenize.COMMENT and behind and not comment.startswith(("noqa", "type:", "fmt:")):
            found[token.start[0]] = comment
    return found


class CommentDocstrings(griffe.Extension):
    """Give attributes without a docstring the comment beside them."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Documents one attribute."""
        if attr.docstring is None and attr.lineno is not None and isinstance(attr.filepath, Path):
            comment = load_comments(attr.filepath).get(attr.lineno)
            if comment:
                attr.docstring = griffe.Docstring(comment, parent=attr)
