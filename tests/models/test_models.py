"""Models by name: sizes, steps, weights from files, and the settings that each of them reads."""

import traceback
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

import fednar_ray as fr
from fednar_ray.config import AnyModel, dump, read_model
from fednar_ray.config.loading import parse_document
from fednar_ray.config.model import MODEL_SETTINGS
from fednar_ray.core.errors import ModelError
from fednar_ray.core.flat_params import ParameterLayout, flatten
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.models import build_model


def build_model_settings(**values: Any) -> AnyModel:
    return read_model(values)


# ——— models by name ———


@pytest.mark.parametrize(
    ("settings", "shape", "dimension"),
    [
        ({"name": "mlp", "hidden": 8}, (1, 8, 8), 64 * 8 + 8 + 8 * 10 + 10),
        ({"name": "mlp", "hidden": 8}, (5,), 5 * 8 + 8 + 8 * 10 + 10),
        ({"name": "cnn", "hidden": 6}, (1, 8, 8), 160 + 32 + 4640 + 64 + (32 * 2 * 2 * 6 + 6) + 70),
        ({"name": "cnn", "hidden": 6}, (3, 9, 5), 448 + 32 + 4640 + 64 + (32 * 3 * 2 * 6 + 6) + 70),
        ({"name": "cnn", "hidden": 6}, (1, 1, 1), 160 + 32 + 4640 + 64 + (32 * 6 + 6) + 70),
        ({"name": "lenet", "hidden": 6}, (3, 17, 32), 2432 + 51264 + (64 * 1 * 5 * 6 + 6) + 70),
        ({"name": "cnn_femnist", "hidden": 6}, (1, 9, 4), 832 + 51264 + (64 * 2 * 1 * 6 + 6) + 70),
    ],
    ids=str,
)
def test_the_size_of_a_model_follows_from_its_data(settings, shape, dimension):
    for dropout in (0.0, 0.5):
        model = build_model(build_model_settings(**settings, dropout=dropout), shape, outputs=10, seed=0)
        assert model(torch.zeros(2, *shape)).shape == (2, 10)
        assert ParameterLayout.of(model).dimension == dimension
        assert any(isinstance(layer, nn.Dropout) for layer in model) == bool(dropout)


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "dimension"),
    [
        ("logistic", (1, 8, 8), 10, 64 * 10 + 10),
        ("lenet", (3, 32, 32), 10, 2432 + 51264 + (64 * 5 * 5 * 512 + 512) + 5130),
        ("cnn_femnist", (1, 28, 28), 62, 6_603_710),  # the count that LEAF publishes
        ("resnet18_gn", (3, 32, 32), 10, 11_173_962),  # the authors'
        ("char_transformer", (80,), 80, 1_220_432),  # the authors'
        ("char_lstm", (80,), 80, 80 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + 256 * 80 + 80),
    ],
)
def test_the_published_models_have_their_published_sizes(name, shape, outputs, dimension):
    model = build_model(build_model_settings(name=name), shape, outputs, seed=0)
    assert ParameterLayout.of(model).dimension == dimension
    assert model(torch.zeros(2, *shape)).shape == (2, outputs)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"name": "cnn"}, (64,), r"cnn takes images \[channels, height, width\], not \[64\]"),
        ({"name": "resnet18_gn"}, (8, 8), r"resnet18_gn takes images .*, not \[8, 8\]"),
        ({"name": "char_lstm"}, (1, 8, 8), r"char_lstm takes sequences \[positions\] of tokens, not \[1, 8, 8\]"),
        ({"name": "lenet"}, (1, 28, 15), "lenet takes images from 16x16, not 28x15"),
        ({"name": "cnn_femnist"}, (1, 3, 28), "cnn_femnist takes images from 4x4, not 3x28"),
        ({"name": "resnet18_gn"}, (3, 64, 32), "last feature map is 8x4, and authors needs 3x3 to 5x5; use whole"),
    ],
    ids=str,
)
def test_a_model_refuses_unsupported_inputs(settings, shape, message):
    with pytest.raises(ModelError, match=message):
        build_model(build_model_settings(**settings), shape, outputs=10, seed=0)


def test_a_resnet_with_global_pooling_accepts_images_of_any_size():
    for side in (8, 20, 40):
        model = build_model(
            build_model_settings(name="resnet18_gn", pooling="whole"), (1, side, side), outputs=3, seed=0
        )
        assert model(torch.zeros(1, 1, side, side)).shape == (1, 3)


@pytest.mark.parametrize("name", ["mlp", "cnn", "char_transformer"])
def test_initialization_depends_only_on_the_seed_and_changes_no_global_generator(name):
    shape = (6,) if name == "char_transformer" else (1, 8, 8)

    def built(seed: int) -> np.ndarray:
        return flatten(build_model(build_model_settings(name=name, hidden=4), shape, outputs=3, seed=seed))

    torch.manual_seed(1)
    first = built(0)
    after = torch.rand(3)
    torch.manual_seed(1)
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)
    np.testing.assert_array_equal(built(0), first)
    assert not np.array_equal(built(1), first)


# ——— one step of training, against plain torch ———

STEP = {"local_lr": 0.5, "weight_decay": 0.05, "clip_bound": 0.3}


def train_one_step(
    section: dict[str, object], federation: fr.Federation, outputs: int, width: int = 1
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Returns the initial model, and its parameters by name after one full-batch step of every client."""
    experiment = fr.Experiment.model_validate(
        {
            "model": section,
            "federation": {"rounds": 1, "local_steps": 1, "batch_size": 1000},
            "algorithm": {"local_lr": STEP["local_lr"]},
            "regularizer": {key: STEP[key] for key in ("weight_decay", "clip_bound")},
            "execution": {"placement": "serial", "vectorize": width},
        }
    )
    (report,) = fr.iter_rounds(experiment, federation=federation)
    model = build_model(read_model(section), federation.test.x.shape[1:], outputs, seed=0)
    return model, ParameterLayout.of(model).unflatten(torch.from_numpy(report.parameters.copy()))


def compute_step(before: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Computes FedNAR's step by hand: v = g + λ·x, clipped to norm A."""
    v = {name: gradients[name] + STEP["weight_decay"] * x for name, x in before.items()}
    norm = torch.cat([part.flatten() for part in v.values()]).norm()
    assert norm > STEP["clip_bound"]
    return {name: x - STEP["local_lr"] * STEP["clip_bound"] / norm * v[name] for name, x in before.items()}


def assert_same_step(before: dict[str, Tensor], after: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, x in before.items():
        torch.testing.assert_close(after[name] - x, expected[name] - x, rtol=2e-3, atol=2e-6, msg=name)


def compute_resnet18(p: list[Tensor], x: Tensor, pooling: str) -> Tensor:
    """Computes ResNet-18 with two groups per GroupNorm, from its parameters in order."""
    take = iter(p)

    def normed(x: Tensor, stride: int, padding: int) -> Tensor:
        x = conv2d(x, next(take), stride=stride, padding=padding)
        groups = x.reshape(len(x), 2, -1)  # an explicit GroupNorm
        groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return groups.reshape(x.shape) * next(take)[:, None, None] + next(take)[:, None, None]

    x = normed(x, 1, 1).relu()
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            inner = normed(normed(x, stride, 1).relu(), 1, 1)
            x = (inner + (normed(x, stride, 0) if stride == 2 else x)).relu()
    assert x.shape[2:] == (4, 4)
    x = x[:, :, :3, :3].mean((2, 3)) if pooling == "authors" else x.mean((2, 3))
    x = x @ next(take).t() + next(take)
    assert next(take, None) is None
    return x


@pytest.mark.usefixtures("long_computation")
def test_a_step_of_resnet18_gn_equals_plain_torch():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 32, 32)).astype(np.float32), np.array([3, 9])
    model, after = train_one_step({"name": "resnet18_gn"}, fr.Federation([(x, y)], (x, y)), outputs=10)
    before = {name: p.detach() for name, p in model.named_parameters()}
    leaves = [p.clone().requires_grad_() for p in before.values()]
    outputs = compute_resnet18(leaves, torch.from_numpy(x), "authors")
    loss = -outputs.log_softmax(1)[torch.arange(2), torch.from_numpy(y)].mean()
    gradients = dict(zip(before, torch.autograd.grad(loss, leaves), strict=True))
    assert_same_step(before, after, compute_step(before, gradients))
    whole = build_model(build_model_settings(name="resnet18_gn", pooling="whole"), (3, 32, 32), 10, seed=0)
    with torch.no_grad():
        expected = compute_resnet18(leaves, torch.from_numpy(x), "whole")
        torch.testing.assert_close(whole(torch.from_numpy(x)), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(expected, outputs, rtol=1e-2)


class PlainTransformer(nn.Module):
    """A transformer from torch's encoder, which computes all positions of every layer."""

    def __init__(self, layers: int, own: dict[str, Tensor]) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.embedding, self.positions, self.head = nn.Embedding(80, 128), nn.Embedding(80, 128), nn.Linear(128, 80)
        with torch.no_grad():
            for name, p in self.by_our_names().items():
                p.copy_(torch.cat([own[part] for part in name.split("+")]))

    def by_our_names(self) -> dict[str, Tensor]:
        """Returns each parameter by our names; where torch joins two of ours into one, the names are joined by +."""
        named = {
            "positions": self.positions.weight,
            "embedding.weight": self.embedding.weight,
            "head.weight": self.head.weight,
            "head.bias": self.head.bias,
        }
        for i, layer in enumerate(self.encoder.layers):
            for kind in ("weight", "bias"):
                attention, at = layer.self_attn, f"layers.{i}"
                named[f"{at}.query.{kind}+{at}.key_value.{kind}"] = getattr(attention, f"in_proj_{kind}")
                named[f"{at}.joined.{kind}"] = getattr(attention.out_proj, kind)
                for ours, theirs in (("first", "linear1"), ("second", "linear2")):
                    named[f"{at}.{ours}.{kind}"] = getattr(getattr(layer, theirs), kind)
                for ours, theirs in (("attended", "norm1"), ("transformed", "norm2")):
                    named[f"{at}.{ours}.{kind}"] = getattr(getattr(layer, theirs), kind)
        return named

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * 128**0.5 + self.positions(torch.arange(80))
        return self.head(self.encoder(x)[:, -1])


def build_characters(clients: int, each: int) -> fr.Federation:
    rng = np.random.default_rng(1)
    pairs = [
        (rng.integers(80, size=(each, 80), dtype=np.uint8), rng.integers(80, size=each)) for _ in range(clients + 1)
    ]
    return fr.Federation(pairs[:-1], pairs[-1])


def test_a_step_of_char_transformer_equals_plain_torch():
    federation = build_characters(1, 3)
    model, after = train_one_step({"name": "char_transformer", "dropout": 0}, federation, outputs=80)
    before = {name: p.detach() for name, p in model.named_parameters()}
    plain, (x, y) = PlainTransformer(6, before), (federation.shards.examples.x, federation.shards.examples.y)
    loss = cross_entropy(plain(torch.from_numpy(x).long()), torch.from_numpy(y))
    named = plain.by_our_names()
    gradients = {}
    for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
        parts = name.split("+")
        gradients |= dict(zip(parts, gradient.split([len(before[part]) for part in parts]), strict=True))
    assert gradients.keys() == before.keys()
    assert_same_step(before, after, compute_step(before, gradients))


def test_a_group_of_transformers_steps_as_single_clients_do():
    federation, model = build_characters(3, 2), {"name": "char_transformer", "dropout": 0, "layers": 2, "hidden": 16}
    (built, alone), (_, together) = (train_one_step(model, federation, outputs=80, width=width) for width in (1, 3))
    assert_same_step({name: p.detach() for name, p in built.named_parameters()}, together, alone)


def test_dropout_of_a_transformer_is_active_only_in_training():
    model = build_model(build_model_settings(name="char_transformer", layers=1, hidden=4), (5,), 7, seed=0)
    tokens = torch.arange(10).view(2, 5)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


def test_a_language_model_depends_on_every_position_and_on_their_order():
    for name in ("char_transformer", "char_lstm"):
        model = build_model(build_model_settings(name=name, layers=2, hidden=8), (5,), 7, seed=0).eval()
        outputs = model(torch.tensor([[1, 2, 3, 4, 5], [2, 1, 3, 4, 5], [1, 2, 3, 4, 6], [9, 2, 3, 4, 5]]))
        assert len({tuple(row) for row in outputs.tolist()}) == 4


def test_a_vocabulary_must_contain_the_tokens_and_determines_the_outputs():
    def prepared(vocabulary: int) -> Prepared:
        section = {"name": "char_transformer", "vocabulary": vocabulary, "hidden": 4, "layers": 1}
        return prepare(fr.Experiment.model_validate({"model": section}), build_characters(1, 30))

    assert prepared(90).model(torch.zeros(1, 80)).shape == (1, 90)
    with pytest.raises(ModelError, match=r"vocabulary: 60: tokens run from 0 to 59, those of the data from 0 to 79"):
        prepared(60)


# ——— custom models, and weights from files ———


def test_a_function_given_by_its_path_builds_the_model(tmp_path, monkeypatch):
    text = """
import torch
def build(width, tail=()):
    return torch.nn.Sequential(torch.nn.Linear(2, width), *(torch.nn.Linear(a, b) for a, b in [tail]))
def number():
    return 3
"""
    (tmp_path / "models_of_a_user.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def built(function: str, **arguments: object) -> nn.Module:
        return build_model(build_model_settings(function=function, arguments=arguments), (2,), 3, seed=0)

    model = built("models_of_a_user.build", width=4, tail=[4, 3])
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 2), (4,), (3, 4), (3,)]
    again = built("models_of_a_user.build", width=4, tail=[4, 3])
    np.testing.assert_array_equal(flatten(model), flatten(again))  # from the seed
    wrong = {
        "models_of_a_user.bild": "cannot be imported: module 'models_of_a_user' has no attribute 'bild'",
        "models_of_nobody.build": "cannot be imported: No module named 'models_of_nobody'",
        "models_of_a_user.build": r"fails when called with \(\): .*missing 1 required positional argument: 'width'",
        "models_of_a_user.number": "returns int; a torch.nn.Module is needed",
    }
    for function, message in wrong.items():
        with pytest.raises(ModelError, match=rf"^model.function: {function}: {message}"):
            built(function)


def test_torchvision_models_have_one_output_per_class():
    model = build_model(build_model_settings(torchvision="squeezenet1_1"), (3, 64, 64), 7, seed=0)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    settings = build_model_settings(torchvision="squeezenet1_1", arguments={"num_classes": 9, "dropout": 0.25})
    wider = build_model(settings, (3, 64, 64), 7, seed=0)
    assert wider(torch.zeros(1, 3, 64, 64)).shape == (1, 9)
    assert wider.classifier[0].p == 0.25
    with pytest.raises(
        ModelError, match="torchvision: squeezenet1_2: torchvision has no such model; it has squeezenet1"
    ):
        build_model(build_model_settings(torchvision="squeezenet1_2"), (3, 64, 64), 7, seed=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded_from_a_file(tmp_path, suffix):
    source = build_model(build_model_settings(hidden=4), (2,), 3, seed=5)
    path = tmp_path / f"start{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    model = build_model(build_model_settings(hidden=4, weights=str(path)), (2,), 3, seed=0)
    np.testing.assert_array_equal(flatten(model), flatten(source))


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "start.safetensors"
    kept = build_model(build_model_settings(hidden=4), (2,), 3, seed=0).state_dict()
    del kept["1.bias"]
    save_file({**kept, "fc.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError) as caught:
        build_model(build_model_settings(hidden=4, weights=str(path)), (2,), 5, seed=0)
    assert str(caught.value) == (
        f"model.weights: {path}: does not fit the model: missing: 1.bias; not in the model: fc.weight; "
        "of another shape: 3.weight [3, 4], not [5, 4], 3.bias [3], not [5]"
    )


class Code:
    def __reduce__(self):
        return print, ("a pickle that runs code",)


def test_unreadable_weights_are_refused_without_running_code(tmp_path, capsys):
    whole = tmp_path / "whole.safetensors"
    save_file({"1.weight": torch.zeros(40)}, whole)
    broken, empty, code, other = (tmp_path / name for name in ("broken.safetensors", "empty.pt", "code.pt", "other.pt"))
    broken.write_bytes(whole.read_bytes()[:-7])
    empty.touch()
    torch.save(Code(), code)
    torch.save({"epoch": 3, "model": {}}, other)
    for path in (broken, empty, code, tmp_path / "none.pt", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ModelError, match=f"^model.weights: {path}: cannot be read: "):
            build_model(build_model_settings(weights=str(path)), (2,), 3, seed=0)
    with pytest.raises(ModelError, match=f"^model.weights: {other}: is not a state dict"):
        build_model(build_model_settings(weights=str(other)), (2,), 3, seed=0)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript archive")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.zeros(3, 2, dtype=torch.complex64), "does not fit the model: of another kind: 1.weight is complex"),
        (torch.zeros(3, 2).to_sparse(), "does not fit the model: of another kind: 1.weight is sparse"),
        (torch.zeros(3, 2, dtype=torch.float64), None),
    ],
)
def test_weights_that_pytorch_would_convert_are_refused(given, says, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"1.weight": given, "1.bias": torch.zeros(3)}, path)
    settings = build_model_settings(name="logistic", weights=str(path))
    if says is None:
        assert torch.equal(build_model(settings, (2,), 3, seed=0)[1].weight, torch.zeros(3, 2))
        return
    with pytest.raises(ModelError, match=f"{path}: {says}"):
        build_model(settings, (2,), 3, seed=0)


def test_weights_inside_a_training_checkpoint_are_reported_with_a_remedy(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "mean": torch.zeros(2), "state_dict": {"1.bias": torch.zeros(3)}}, path)
    with pytest.raises(ModelError, match=r"is not a state dict .*; its entry 'state_dict' is one: save only that"):
        build_model(build_model_settings(weights=str(path)), (2,), 3, seed=0)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_weights_file_with_code_is_refused_without_the_advice_to_run_it(tmp_path):
    code, whole, script, numbered, words = (tmp_path / f"{name}.pt" for name in ("a", "b", "c", "d", "e"))
    torch.save(Code(), code)
    torch.save(nn.Linear(2, 3), whole)
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), script)
    torch.save({0: torch.zeros(1)}, numbered)
    words.write_text("not weights at all")
    for path in (code, whole, script, words):
        with pytest.raises(ModelError, match=f"^model.weights: {path}: cannot be read: ") as refused:
            build_model(build_model_settings(weights=str(path)), (2,), 3, seed=0)
        text = "".join(traceback.format_exception(refused.value))
        assert "weights_only" not in text
        assert "save only the weights, with torch.save(model.state_dict(), path)" in text
    with pytest.raises(ModelError, match=f"^model.weights: {numbered}: is not a state dict"):
        build_model(build_model_settings(weights=str(numbered)), (2,), 3, seed=0)


# ——— settings of models ———


@pytest.mark.parametrize("name", MODEL_SETTINGS)
def test_a_model_refuses_settings_that_it_does_not_use(name):
    optional = {"hidden": 4, "dropout": 0.1, "layers": 2, "vocabulary": 9, "pooling": "whole"}
    assert set(optional) == set().union(*MODEL_SETTINGS.values())
    for key, value in optional.items():
        if key in MODEL_SETTINGS[name]:
            assert getattr(read_model({"name": name, key: value}), key) == value
        else:
            with pytest.raises(ValidationError, match=f"{name} does not read {key}: it belongs to "):
                read_model({"name": name, key: value})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "mlp", "torchvision": "resnet18"},
            r"set only one of name \('mlp'\) and torchvision \('resnet18'\)",
        ),
        ({"torchvision": "resnet18", "hidden": 4}, "torchvision does not read hidden"),
        ({"name": "mlp", "arguments": {"a": 1}}, "mlp does not read arguments"),
        ({"function": "build"}, "pattern"),
        ({"function": "a.b", "arguments": {"a": {"b": 1}}}, "should be a number, text, true, false, or a list"),
        ({"name": "resnet"}, "'char_transformer'"),
    ],
    ids=str,
)
def test_a_contradictory_model_section_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        read_model(section)


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"name": "char_transformer", "layers": 2},
        {"torchvision": "resnet18", "weights": "/start.pt"},
        {"function": "a.b.c", "arguments": {"width": 3, "rate": 0.5, "bias": True, "kind": "x", "sizes": [1, 2]}},
    ],
    ids=str,
)
def test_a_recorded_model_section_is_read_back_unchanged(section):
    experiment = fr.Experiment.model_validate({"model": section})
    assert parse_document(dump(experiment), "recorded").experiment == experiment
    assert experiment.model.name or section.keys() & {"torchvision", "function"}


def test_a_relative_path_of_weights_becomes_absolute_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = parse_document("experiment: {model: {weights: start.pt}}", "here")
    assert document.experiment.model.weights == str(tmp_path / "start.pt")
