"""A small file system fills up while a run writes to it; once there is room again, the run is resumed."""

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from evidence import find_differences
from processes import end_all_in
from runs import DiskState, Ended, Hung, Run
from stage import Outcome, Stage

from fednar_ray.checkpoint.locations import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.core.errors import CheckpointError

MEGABYTES = 12  # the run needs half of this
CHUNK_BYTES = 4096


def disturb(stage: Stage, times: int) -> Iterator[Outcome]:
    """Fills the disk once per run. The working directory, checkpoints included, is on the small file system."""
    random = stage.random("disk")
    for preset in stage.presets[:times]:
        yield _disturb_run(stage, preset, random)


@contextmanager
def mount_small_disk(stage: Stage) -> Iterator[Path]:
    """Mounts a tmpfs."""
    folder = stage.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)], check=True)  # noqa: S607
    try:
        yield folder
    finally:
        end_all_in(folder)
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def _disturb_run(stage: Stage, preset: str, random: Random) -> Outcome:
    undisturbed = stage.undisturbed(preset)
    hits: tuple[str, ...] = ()
    full = DiskState()
    with mount_small_disk(stage) as folder, stage.run(preset, folder=folder) as run:
        run.start()
        try:
            target = random.uniform(1, 0.8 * undisturbed.rounds)
            if run.ended_before_round(target, undisturbed.round_seconds):
                problems: tuple[str, ...] = ("it ended before the disk was full",)
            else:
                ended = _fill_until_end(run, folder / "filler")
                full, hits = run.read_disk(), (ended.err.strip().splitlines()[-1].replace(f"{folder}/", ""),)
                problems = (*_find_unclear_errors(ended), *_find_damage(run, full))
                (folder / "filler").unlink()
                run.start()
                problems = (*problems, *find_differences(run, run.finish(), undisturbed))
        except Hung as error:
            problems = (str(error),)
    return Outcome(
        preset=preset,
        hits=hits,
        problems=problems,
        rounds_redone=full.rounds - full.checkpoint,
        seconds_lost=run.seconds - undisturbed.seconds,
    )


def _fill_until_end(run: Run, filler: Path) -> Ended:
    """Takes all free space, also what the run frees, until the run ends."""
    with filler.open("wb", buffering=0) as file:

        def fill() -> bool:
            try:
                while file.write(bytes(CHUNK_BYTES)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            return False

        run.ended_before(fill)
    return run.finish()


def _find_unclear_errors(ended: Ended) -> tuple[str, ...]:
    """Returns the problems of the command's exit code and output."""
    clear = ended.err.strip().splitlines()[-1].startswith("failed: ") and "No space left" in ended.err
    traceback = "Traceback" in ended.err
    return () if ended.code == 1 and clear and not traceback else (f"exit code {ended.code}: {ended.err[-500:]}",)


def _find_damage(run: Run, full: DiskState) -> tuple[str, ...]:
    """Returns the problems of the newest checkpoint."""
    assert run.directory is not None
    try:
        checkpoint = CheckpointStore(open_storage(str(run.directory / "checkpoints")), 1).load()
    except CheckpointError as error:
        return (str(error),)
    whole = checkpoint is not None and checkpoint.next_round == full.checkpoint
    return () if whole else (f"the checkpoint of round {full.checkpoint} is not whole",)
