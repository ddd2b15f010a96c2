"""Adapters: trained, kept in files, merged; what they change and nothing else; how wrong ones are refused."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import torch
from accelerate import Accelerator
from conftest import images, tiny_rrdb
from safetensors.torch import load_file, save_file
from test_models import HEAD, source, write
from torch import Tensor, nn

from benchsr.base.errors import CardError, IntegrityError
from benchsr.models.adapters import merge_adapter
from benchsr.models.network import load_network
from benchsr.models.zoo import find_weights, load_card, network_key
from benchsr.train.adapters import AdaptedConv2d, add_adapters, merge_adapters, weights_fixed
from benchsr.train.crops import load_images
from benchsr.train.loop import Job, Trainer, export
from benchsr.train.provenance import provenance, write_provenance
from benchsr.train.publish import publish
from benchsr.train.recipe import Recipe


def adapted(rank: int = 2) -> nn.Module:
    """`tiny_rrdb` with adapters that do something."""
    network = add_adapters(tiny_rrdb(), rank)
    gen = torch.Generator().manual_seed(1)
    for name, value in network.named_parameters():
        if name.endswith("lora_B"):
            value.data = 0.05 * torch.randn(value.shape, generator=gen)
    return network


def adapter_card(folder: Path, name: str = "toy", base: str = "base") -> Path:
    file = folder / f"{name}-adapter.safetensors"
    if not file.exists():
        export(adapted(), file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    table = f'[[weights]]\nkind = "adapter"\nbase = "{base}"\npath = "{file.name}"\nsha256 = "{sha256}"\n'
    return write(folder, HEAD + table, name)


def base_card(folder: Path) -> Path:
    save_file(tiny_rrdb().state_dict(), folder / "base.safetensors")
    return write(folder, HEAD + source(folder / "base.safetensors"), "base")


def test_a_fresh_adapter_changes_nothing_and_a_merge_nothing_more() -> None:
    lr, _ = images(1, 12)
    with torch.no_grad():
        plain = tiny_rrdb()(lr)
        assert torch.equal(add_adapters(tiny_rrdb(), 2)(lr), plain)
        changed = adapted()
        answer = changed(lr)
        assert float((answer - plain).abs().max()) > 0.01
        torch.testing.assert_close(merge_adapters(changed)(lr), answer)
    assert changed.state_dict().keys() == tiny_rrdb().state_dict().keys()


def test_gradients_are_those_of_the_parametrized_weight() -> None:
    lr, _ = images(2, 12)
    found = []
    for plain in (False, True):
        network = adapted()
        for module in network.modules():
            if plain and isinstance(module, AdaptedConv2d):
                parametrized = type(module)
                module.__class__ = type("Plain", (parametrized,), {"forward": nn.Conv2d.forward})
        x = lr.clone().requires_grad_()
        network(x).square().mean().backward()
        found.append({"input": x.grad} | {name: p.grad for name, p in network.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 10
    for name, gradient in found[0].items():
        assert gradient is not None
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-6)


def test_fixed_weights_get_no_gradient_and_are_trained_afterwards() -> None:
    network = adapted()
    before = [name for name, p in network.named_parameters() if p.requires_grad]
    x = images(1, 12)[0].requires_grad_()
    plain = torch.autograd.grad(network(x).square().mean(), x)[0]
    with weights_fixed(network):
        assert not any(p.requires_grad for p in network.parameters())
        fixed = torch.autograd.grad(network(x).square().mean(), x)[0]
    torch.testing.assert_close(fixed, plain)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == before


def test_a_card_with_an_adapter_is_its_base_plus_b_a(tmp_path: Path) -> None:
    base_card(tmp_path)
    card = adapter_card(tmp_path)
    state = load_file(tmp_path / "toy-adapter.safetensors")
    expected = tiny_rrdb().state_dict()
    for name in {key.rsplit(".lora", 1)[0] for key in state}:
        b, a = state[f"{name}.lora_B.weight"].float(), state[f"{name}.lora_A.weight"].float()
        expected[f"{name}.weight"] = expected[f"{name}.weight"] + torch.einsum("or,rikl->oikl", b[..., 0, 0], a)
    network = load_network(card)
    assert not any(p.requires_grad for p in network.parameters())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_alpha_scales_the_update(tmp_path: Path) -> None:
    export(adapted(), tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors", {"rank": "2", "alpha": "1"})
    name = "model.0.weight"
    plain = tiny_rrdb().state_dict()[name]
    one = merge_adapter(tiny_rrdb(), tmp_path / "a.safetensors", "toy").state_dict()[name]
    half = merge_adapter(tiny_rrdb(), tmp_path / "b.safetensors", "toy").state_dict()[name]
    torch.testing.assert_close(half - plain, (one - plain) / 2)


def test_the_key_follows_base_and_adapter(tmp_path: Path) -> None:
    base = base_card(tmp_path)
    first = network_key(load_card(adapter_card(tmp_path)))
    assert first != network_key(load_card(base))
    export(adapted(3), tmp_path / "other-adapter.safetensors")
    assert network_key(load_card(adapter_card(tmp_path, "other"))) != first
    save_file(tiny_rrdb(seed=5).state_dict(), tmp_path / "base.safetensors")
    write(tmp_path, HEAD + source(tmp_path / "base.safetensors"), "base")
    find_weights.cache_clear()
    assert network_key(load_card(tmp_path / "toy.toml")) != first


def test_adapters_stack(tmp_path: Path) -> None:
    base_card(tmp_path)
    adapter_card(tmp_path, "middle")
    top = load_network(adapter_card(tmp_path, "top", base="middle"))
    name = "model.0.weight"
    plain, middle = tiny_rrdb().state_dict()[name], load_network(tmp_path / "middle.toml").state_dict()[name]
    torch.testing.assert_close(top.state_dict()[name] - middle, middle - plain)


def test_circles_and_missing_bases_are_named(tmp_path: Path) -> None:
    one, _ = adapter_card(tmp_path, "one", base="two"), adapter_card(tmp_path, "two", base="one")
    with pytest.raises(CardError, match=r"one\.toml: base: one -> two -> one is a circle"):
        load_network(one)
    with pytest.raises(CardError, match="there is no card 'nowhere'"):
        load_network(adapter_card(tmp_path, "lost", base="nowhere"))


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"x.{name}": value for name, value in state.items()}


def _halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("model.0.lora_B")}


def _wider(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"model.0.lora_A.weight": torch.zeros(2, 5, 3, 3)}


def _nan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"model.0.lora_A.weight": torch.full((2, 3, 3, 3), torch.nan)}


GOOD = {"rank": "2", "alpha": "2"}


@pytest.mark.parametrize(
    ("change", "about", "says"),
    [
        (_renamed, GOOD, "no convolution 'x.model"),
        (_halved, GOOD, "needs both"),
        (_wider, GOOD, "do not fit"),
        (_nan, GOOD, "NaN or infinite"),
        (dict, {}, "must name rank"),
        (dict, {"rank": "0", "alpha": "1"}, "must name rank"),
        (dict, {"rank": "2", "alpha": "inf"}, "must name rank"),
        (lambda state: {"model.0.weight": torch.zeros(8, 3, 3, 3)}, GOOD, "holds no adapter"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, change: Any, about: dict[str, str], says: str) -> None:
    export(adapted(), tmp_path / "toy-adapter.safetensors")
    file = tmp_path / "toy-adapter.safetensors"
    save_file(change(load_file(file)), file, about)
    base_card(tmp_path)
    with pytest.raises(IntegrityError, match=says):
        load_network(adapter_card(tmp_path))


def test_no_safetensors_and_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "toy-adapter.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        merge_adapter(tiny_rrdb(), file, "toy")
    monkeypatch.setattr("benchsr.models.adapters.MAX_ADAPTER_BYTES", 5)
    with pytest.raises(IntegrityError, match="5 bytes at most"):
        merge_adapter(tiny_rrdb(), file, "toy")


RECIPE: dict[str, Any] = {
    "start": ["base"],
    "held_out": 0,
    "stages": [{"name": "tiny", "steps": 8, "batch": 2, "crop": 8, "lr": 1e-2, "ema": 0.5, "clip": 1.0}],
}


def trained(folder: Path, out: Path, accelerator: Accelerator, steps: int = 8) -> Job:
    recipe = Recipe.model_validate(RECIPE).with_steps(steps)
    data = load_images(folder, recipe.crop, 0, 8, progress=False)
    task = Job("toy", recipe, add_adapters(tiny_rrdb(), 2), data, out)
    progress = Trainer(task, accelerator, resume=task.checkpoint.exists()).run()
    write_provenance(out / "toy.json", provenance(task, progress, start="base", command="train", processes=1))
    return task


def test_training_moves_adapters_alone_and_the_file_holds_them(
    folder: Path, tmp_path: Path, accelerator: Accelerator
) -> None:
    before = tiny_rrdb().state_dict()
    task = trained(folder, tmp_path / "run", accelerator)
    for name, value in task.network.state_dict().items():
        if name.endswith("original"):
            assert torch.equal(value.cpu(), before[name.replace("parametrizations.weight.original", "weight")])
    file = task.weights(task.recipe.stages[-1])
    assert file.stat().st_size < 0.4 * sum(2 * value.numel() for value in before.values())
    moved = merge_adapter(tiny_rrdb(), file, "base").state_dict()
    assert float((moved["model.0.weight"] - before["model.0.weight"]).abs().max()) > 1e-3
    assert torch.equal(moved["model.0.bias"], before["model.0.bias"])


def test_published_adapters_answer_as_what_was_trained(
    folder: Path, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = trained(folder, tmp_path / "run", accelerator)
    cards = tmp_path / "cards"
    cards.mkdir()
    base = base_card(cards)
    monkeypatch.setattr("benchsr.train.publish.load_network", lambda _: load_network(base))
    card = write(cards, HEAD + '[[weights]]\nkind = "manual"\nformat = "pth"\nfile = "x.pth"\ninstruction = "train"\n')
    card.write_text(card.read_text() + tomlkit.dumps({"recipe": RECIPE}))
    publish(task.out, cards)
    assert load_card(card).weights[0].kind == "adapter"
    network = load_network(card)
    lr, _ = images(1, 12)
    state = torch.load(task.checkpoint, weights_only=True)["run"]["ema"]
    ema = torch.optim.swa_utils.AveragedModel(add_adapters(tiny_rrdb(), 2))
    ema.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(network(lr), ema(lr), atol=2e-3, rtol=0)
    other = copy.deepcopy(state)
    for name, value in other.items():
        if name.endswith("lora_B"):
            value += 1
    torch.save({"run": {"ema": other}}, task.checkpoint)
    with pytest.raises(IntegrityError, match="apart from the network"):
        publish(task.out, cards)
