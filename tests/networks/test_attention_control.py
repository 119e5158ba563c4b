"""Attention control against its formula, and that nobody notices it who is not meant to."""

from __future__ import annotations

import threading

import torch
from tests.networks.network_pairs import difference, randomise
from torch import Tensor

from langevin.networks.attention import attend
from langevin.networks.attention_control import TokenMap, attention_map, controlled, followed
from langevin.networks.transformer import SpatialTransformer
from langevin.networks.unet import UNet, UNetConfig

L = 6


def unet(**changes: object) -> UNet:
    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (True, True)}
    network = UNet(UNetConfig(**{**small, "num_heads": 2, "context_channels": 16, **changes}))  # type: ignore[arg-type]
    randomise(network)
    return network.eval().requires_grad_(False)


def inputs(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(count, 4, 8, 8, generator=generator)
    return z, torch.full((count,), 300.0), torch.randn(count, L, 16, generator=generator)


def same_tokens(share: float = 1.0, weight: float = 1.0) -> TokenMap:
    return TokenMap(torch.eye(L), torch.full((L,), share), torch.full((L,), weight))


def test_the_map_is_what_the_kernel_computes() -> None:
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    assert difference(attention_map(q, k) @ v, attend(q, k, v)) < 1e-12
    half = attention_map(q.half(), k.half(), upcast=True)
    assert half.dtype == torch.float32 and difference(half.sum(-1), torch.ones(2, 3, 5)) < 1e-6


def test_tokens_follow_by_the_three_edits() -> None:
    maps = torch.rand(2, 1, 4, 3)
    source = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]])
    tokens = TokenMap(source, torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 3.0]))
    found = followed(maps, tokens)
    assert torch.equal(found[0], maps[0])
    torch.testing.assert_close(found[1, ..., 0], maps[0, ..., 0])  # the same token
    torch.testing.assert_close(found[1, ..., 1], maps[0, ..., 1])  # half of it, twice as strong
    torch.testing.assert_close(found[1, ..., 2], 3 * maps[1, ..., 2])  # its own


def test_without_control_the_copy_is_the_network() -> None:
    network = unet()
    z, t, context = inputs()
    expected = network(z, t, context=context)
    assert torch.equal(controlled(network)(z, t, context=context), expected)
    idle = controlled(network, cross=same_tokens(share=0.0))(z, t, context=context)
    assert difference(idle, expected) < 1e-5
    following = controlled(network, cross=same_tokens(), pixels=True)(z, t, context=context)
    assert difference(following[:1], expected[:1]) < 1e-5  # the source itself
    assert difference(following[1:], expected[1:]) > 1e-2


def test_layers_follow_the_source_by_the_formula() -> None:
    """One transformer's two attentions, written out."""
    transformer = SpatialTransformer(32, 16, 2).double()
    randomise(transformer)
    block = controlled(transformer, cross=same_tokens(), pixels=True).transformer_blocks[0]
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    context = torch.randn(2, L, 16, dtype=torch.float64)
    for layer, given in ((block.attn1, None), (block.attn2, context)):
        at = x if given is None else given
        heads = []
        for h in (slice(0, 16), slice(16, 32)):
            q, k, v = layer.to_q(x)[..., h], layer.to_k(at)[..., h], layer.to_v(at)[..., h]
            weights = torch.softmax(q[0] @ k[0].T / 4, -1)  # the source's, for both
            heads.append(torch.stack([weights @ v[0], weights @ v[1]]))
        assert difference(layer(x, given), layer.to_out(torch.cat(heads, -1))) < 1e-12


def test_large_feature_maps_keep_their_own_self_attention() -> None:
    network = unet()
    z, t, context = inputs()
    expected = network(z, t, context=context)
    assert torch.equal(controlled(network, pixels=True, largest=15)(z, t, context=context), expected)
    some = controlled(network, pixels=True, largest=16)(z, t, context=context)  # 4 x 4 follows, 8 x 8 does not
    assert difference(some, expected) > 1e-3
    assert difference(controlled(network, pixels=True)(z, t, context=context), some) > 1e-3


def test_layers_that_look_at_the_text_twice_follow_twice() -> None:
    network = unet(cross_attention_only_levels=(True, False))
    z, t, context = inputs()
    twin = controlled(network, cross=same_tokens())
    assert type(twin.input_blocks[1][1].transformer_blocks[0].attn1).__name__ == "ControlledAttention"
    assert twin(z, t, context=context).shape == z.shape


def test_the_copy_shares_the_weights_and_leaves_the_network_alone() -> None:
    network = unet()
    names = [name for name, _ in network.named_modules()]
    twin = controlled(network, cross=same_tokens(), pixels=True)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in network.parameters()}
    assert [name for name, _ in network.named_modules()] == names
    assert not any(type(m).__name__ == "ControlledAttention" for m in network.modules())
    assert twin.state_dict().keys() == network.state_dict().keys()


def test_threads_do_not_influence_each_other() -> None:
    network = unet()
    kinds = [network, controlled(network, cross=same_tokens()), controlled(network, pixels=True)]
    z, t, context = inputs()
    expected = [kind(z, t, context=context) for kind in kinds]
    found: list[list[Tensor]] = [[], [], []]

    def work(i: int) -> None:
        with torch.no_grad():
            found[i].extend(kinds[i](z, t, context=context) for _ in range(5))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, several in zip(expected, found, strict=True):
        assert len(several) == 5 and all(torch.equal(one, again) for again in several)
