"""Keys: addressed noise, and secrets that only this user can read."""

import stat

import numpy as np
import pytest

import fednar_ray as fr
from fednar_ray.core.random import Purpose
from fednar_ray.privacy.keys import build_public_key, draw_key, find_key_file, load_key, save_key

BASE = {
    "data": {"source": "digits", "partition": {"clients": 40}},
    "model": {"name": "mlp"},
    "federation": {"rounds": 3, "local_steps": 2, "sampling": "poisson", "clients_per_round": 8},
    "privacy": {"noise_multiplier": 1.0},
}


def build(**changes: object) -> fr.Experiment:
    return fr.Experiment.model_validate({**BASE, **changes})


def test_noise_repeats_at_its_address_and_differs_elsewhere() -> None:
    key = build_public_key(build())
    draws = [
        key.build_generator(purpose, t).standard_normal(4).tolist()
        for purpose in (Purpose.PRIVACY_NOISE, Purpose.COUNT_NOISE)
        for t in (0, 1)
    ]
    assert draws[0] == key.build_generator(Purpose.PRIVACY_NOISE, 0).standard_normal(4).tolist()
    assert len({tuple(each) for each in draws}) == 4


def test_variants_never_share_noise_and_what_trains_the_same_does() -> None:
    base = build()
    others = [
        build(seed=1),
        build(regularizer={"clip_bound": 5.0}),
        build(algorithm={"local_lr": 0.2}),
        build(privacy={"noise_multiplier": 1.0, "bound": {"norm": 2.0}}),
        build(data={"source": "digits", "partition": {"clients": 41}}),
        build(model={"name": "mlp", "hidden": 32}),
    ]
    values = [build_public_key(each).value for each in (base, *others)]
    assert len(set(values)) == len(values)
    same = [
        build(name="other", execution={"placement": "serial"}),
        build(federation={**BASE["federation"], "rounds": 7}),
        build(checkpoint={"every": 1}),
    ]
    assert {build_public_key(each).value for each in same} == {values[0]}


def test_a_secret_key_is_saved_for_this_user_alone_and_loaded() -> None:
    key = draw_key()
    path = save_key(key)
    assert path == find_key_file(str(key.name))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 32
    loaded = load_key(str(key.name))
    assert loaded == key
    assert key.value.hex() not in repr(key)
    assert draw_key().value != key.value


def test_a_secret_that_is_missing_open_or_cut_off_is_refused() -> None:
    key = draw_key()
    with pytest.raises(fr.BadInput, match=r"cannot be read.*copy the file"):
        load_key(str(key.name))
    path = save_key(key)
    path.chmod(0o644)
    with pytest.raises(fr.BadInput, match="others may read the secret"):
        load_key(str(key.name))
    path.chmod(0o600)
    path.write_bytes(key.value[:31])
    with pytest.raises(fr.BadInput, match="31 bytes instead of 32"):
        load_key(str(key.name))


def test_two_secret_keys_draw_different_noise() -> None:
    one, other = (draw_key().build_generator(Purpose.PRIVACY_NOISE, 0).standard_normal(8) for _ in range(2))
    assert not np.array_equal(one, other)
