"""How many examples Hypothesis draws for a test: as many as the test says, or a share of them in the fast lane."""

import os
from typing import Any

from hypothesis import settings

SHARE = float(os.environ.get("EXAMPLES_SHARE", "1"))


def draw(count: int = 100, **more: Any) -> settings:
    """Builds the settings of a test that draws ``count`` examples if all tests run."""
    return settings(max_examples=max(10, int(SHARE * count)), deadline=None, **more)


def draw_by_default() -> None:
    """Lets tests without settings of their own draw like ``draw()``, with Hypothesis's deadline."""
    settings.register_profile("share", max_examples=draw().max_examples)
    settings.load_profile("share")
