"""Models without a card: weights files, live networks, factories; and every way in which they are refused."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_rrdb
from safetensors.torch import save_file
from torch import Tensor, nn
from toys import Dropping, Upscale, net, tiny_dat

from benchsr.base.errors import BenchsrError, InputError, IntegrityError, ModelError
from benchsr.base.inference import FrozenConv2d
from benchsr.base.pairs import Scale
from benchsr.base.rng import Randomised, Seeded
from benchsr.models.cards import Card, Live
from benchsr.models.live import Model, live, live_key, require_picklable, select
from benchsr.models.network import load_network, network_bytes
from benchsr.models.serving import network_of
from benchsr.models.zoo import load_card, network_key


class Rolling(Upscale):
    """Random by numpy's generator, which nobody seeds."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float(np.random.default_rng().random())


class NotANumber(Upscale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0 * 0


class Failing(Upscale):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")


FILES: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "w.safetensors": (tiny_rrdb, "RRDBNet"),
    "w.pth": (tiny_dat, "DAT"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_weights_file_is_a_model(tmp_path: Path, name: str) -> None:
    make, architecture = FILES[name]
    network, path = make(), tmp_path / f"My {name}"
    save_file(network.state_dict(), path) if path.suffix == ".safetensors" else torch.save(network.state_dict(), path)
    (card,) = select(str(path))
    assert (card.id, card.family, card.paper_row) == ("my-w", "paper", False)
    loaded, lr = load_network(card), torch.rand(1, 3, 16, 16)
    assert type(loaded).__name__ == architecture
    torch.testing.assert_close(loaded(lr), network(lr))
    twin = tmp_path / f"twin{path.suffix}"
    twin.write_bytes(path.read_bytes())
    assert network_key(load_card(twin)) == network_key(card)
    assert load_card(f"other={twin}").id == "other"


def test_a_weights_file_is_named_in_its_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lost\.pth: there is no such file"):
        select(f"{tmp_path}/lost.pth")
    torch.save(tiny_rrdb(), tmp_path / "whole.pth")
    with pytest.raises(IntegrityError, match=r"whole\.pth: refused, nothing was run: it names spandrel"):
        select(f"{tmp_path}/whole.pth")
    save_file(tiny_rrdb().state_dict(), tmp_path / "bicubic.safetensors")
    with pytest.raises(InputError, match="'bicubic' is a model of the zoo"):
        select(f"{tmp_path}/bicubic.safetensors")
    assert select(f"mine={tmp_path}/bicubic.safetensors")[0].id == "mine"


def test_models_by_name_live_or_in_a_file(tmp_path: Path) -> None:
    save_file(tiny_rrdb().state_dict(), tmp_path / "w.safetensors")
    models: dict[str, Model] = {
        "own": net(),
        "bicubic": "bicubic",
        "base": "bicubic",
        "file": tmp_path / "w.safetensors",
    }
    cards = select(models)
    assert [card.id for card in cards] == list(models)
    assert [type(card) for card in cards] == [Live, Card, Card, Card]
    assert network_key(cards[1]) == network_key(cards[2])
    assert network_bytes(cards[0]) == 4 * (48 * 27 + 48)


@pytest.mark.parametrize("scale", [2, 8])
def test_models_without_a_card_at_the_scale_of_the_run(tmp_path: Path, scale: Scale) -> None:
    file = tmp_path / "w.safetensors"
    save_file(tiny_rrdb(scale=scale).state_dict(), file)
    for card in select({"file": file, "own": net(factor=scale), "bicubic": "bicubic"}, scale=scale):
        assert card.scale == scale
        assert load_network(card)(torch.rand(1, 3, 6, 5)).shape == (1, 3, 6 * scale, 5 * scale)
    assert load_network(str(file))(torch.rand(1, 3, 6, 5)).shape == (1, 3, 6 * scale, 5 * scale)
    with pytest.raises(ModelError, match=rf"scale: ESRGAN here is x{scale}, not x4; .* give --scale {scale}"):
        select(str(file))


def test_a_live_network_is_copied_and_never_changed() -> None:
    own = net()
    before, classes = copy.deepcopy(own.state_dict()), [type(m) for m in own.modules()]
    network, lr = load_network(live("own", own)), torch.rand(1, 3, 8, 8)
    assert type(network.conv) is FrozenConv2d
    torch.testing.assert_close(network(lr), own(lr))
    assert [type(m) for m in own.modules()] == classes
    assert all(p.requires_grad for p in own.parameters())
    assert not any(m._forward_hooks for m in own.modules())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_the_key_tells_live_networks_apart() -> None:
    class Other(Upscale):
        pass

    buffered, mean = net(), torch.zeros(3)
    buffered.register_buffer("mean", mean, persistent=False)
    key, again = live_key(buffered), live_key(copy.deepcopy(buffered))
    assert key == again
    mean += 1
    keys = [
        key,
        *map(live_key, (buffered, net(), net(seed=1), net(Other), net(Dropping), Seeded(net()), Seeded(net(), 1))),
    ]
    assert len(set(keys)) == len(keys)
    assert live("one", net())._key == live("two", net())._key == live_key(net())


def with_nan() -> nn.Module:
    network = net()
    nn.init.constant_(network.conv.bias, float("nan"))  # type: ignore[arg-type]
    return network


REFUSED: Mapping[str, tuple[Callable[[], object], str]] = {
    "scale": (
        lambda: net(factor=2),
        r"own: Upscale made \(1, 3, 64, 64\) of LR \(1, 3, 32, 32\); expected \(1, 3, 128, 128\): it is x2, not x4",
    ),
    "train mode": (lambda: net().train(), r"own: .*train mode; call its eval\(\)"),
    "half precision": (lambda: net().half(), r"own: conv.weight is torch.float16; call the network's float\(\)"),
    "double precision": (lambda: net().double(), "own: conv.weight is torch.float64"),
    "device": (lambda: net().to("meta"), "own: conv.weight is on the device meta"),
    "NaN weights": (with_nan, "own: conv.bias holds NaN"),
    "NaN answers": (lambda: net(NotANumber), "own answers with NaN"),
    "failing": (lambda: net(Failing), r"own fails on LR of \(1, 3, 32, 32\) \(RuntimeError: no such kernel\)"),
    "random": (lambda: net(Dropping), r"own gave one input two answers, .* benchsr\.Seeded"),
    "random beyond torch": (lambda: Seeded(net(Rolling)), "own gave one input two answers"),
    "no network": (lambda: [net()], "'own' is a list; give a network"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_a_live_network_must_not_be(what: str) -> None:
    make, says = REFUSED[what]
    with pytest.raises(BenchsrError, match=says) as caught:
        select({"own": make()})  # type: ignore[dict-item]
    assert isinstance(caught.value, InputError | ModelError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("row", "says"), [("bicubic", "a model of the zoo"), ("My net", "'My net' cannot be an id")])
def test_a_row_needs_an_id_of_its_own(row: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        select({row: net()})


def test_declared_randomness_depends_on_the_image_and_the_purpose_alone() -> None:
    seeded = load_network(live("own", Seeded(net(Dropping))))
    assert isinstance(seeded, Randomised)
    x = torch.rand(2, 3, 8, 8)
    state = torch.get_rng_state()
    both = seeded(x, ["a", "b"], "one")
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(both.flip(0), seeded(x.flip(0), ["b", "a"], "one"))
    torch.testing.assert_close(both[:1], seeded(x[:1], ["a"], "one"))
    assert not torch.allclose(both, seeded(x, ["a", "b"], "two"))
    assert not torch.allclose(both, seeded(x, ["c", "d"], "one"))


def test_a_live_network_travels_to_workers_with_its_key() -> None:
    card = live("own", net())
    require_picklable([card, load_card("bicubic")])
    there = pickle.loads(pickle.dumps(card))
    assert (there.id, there.file, network_key(there)) == (card.id, card.file, network_key(card))
    lr = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(load_network(there)(lr), load_network(card)(lr))


def test_a_network_that_cannot_be_pickled_is_refused_for_workers() -> None:
    class Local(Upscale):
        pass

    card = live("own", net(Local))
    with pytest.raises(InputError, match=r"own: the network cannot be sent to workers .*--workers 1"):
        require_picklable([card])


FACTORIES = """
from torch import nn
from toys import Upscale, net
good_one = net
def failing(): raise ValueError("no weights here")
def nothing(): return None
def training(): return Upscale()
number = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder."""
    (tmp_path / "my_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    return "my_nets"


def test_code_runs_only_when_trusted(factories: str) -> None:
    for call in (select, load_card):
        with pytest.raises(InputError, match=r"my_nets:good_one names Python code .*--trust-code"):
            call(f"{factories}:good_one")
    cards = select(f"{factories}:good_one,bicubic", trust_code=True)
    assert [card.id for card in cards] == ["good-one", "bicubic"]
    assert network_key(cards[0]) == live_key(net())
    assert network_bytes(cards[0]) == network_bytes(live("own", net()))
    assert factories not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_nets:failing", r"my_nets:failing failed \(ValueError: no weights here\)"),
        ("my_nets:nothing", "my_nets:nothing returned a NoneType, not a network"),
        ("my_nets:number", r"my_nets:number is no callable \(int\); it must be one"),
        ("my_nets:missing", "my_nets:missing cannot be imported .*has no attribute 'missing'"),
        ("no_such_module:net", "no_such_module:net cannot be imported"),
    ],
)
def test_a_factory_that_fails_is_named(factories: str, name: str, says: str) -> None:
    with pytest.raises(BenchsrError, match=says):
        network_of(name)


def test_what_its_process_finds_wrong_is_said_here(factories: str) -> None:
    with pytest.raises(InputError, match=r"training: .*train mode"):
        select(f"{factories}:training", trust_code=True)
