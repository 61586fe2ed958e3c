"""Lines of JSON are read while they are written."""

import json
from pathlib import Path

from fednar_ray.tracking.json_lines import JsonLines


def test_lines_are_read_while_they_are_written(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines")
    for index in range(5):
        lines.append(json.dumps(index))
        assert lines.read(index, index + 1) == (str(index),)
    lines.close()
    assert lines.read(1, 4) == ("1", "2", "3")
    assert lines.read(2, 2) == ()
