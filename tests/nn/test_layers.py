"""The parts of the networks, against formulas written out."""

import math

import pytest
import torch
from pydantic import ValidationError

from cmray.nn.layers import FourierFeatures, zero_init
from cmray.nn.unet import Attention, UNet, UNetConfig, group_norm


def test_fourier_features_are_cosines_then_sines_from_half_to_sixteen_radians():
    c_noise = torch.tensor([-1.5, 0.0, 0.7])
    out = FourierFeatures(8)(c_noise)
    assert out.shape == (3, 8)
    frequencies = [0.5 * 32 ** (i / 3) for i in range(4)]
    expected = [[f(c * w) for f in (math.cos, math.sin) for w in frequencies] for c in c_noise.tolist()]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_attention_is_softmax_of_scaled_products_per_head():
    torch.manual_seed(0)
    attention = Attention(8, head_width=4)
    assert attention.heads == 2
    for p in attention.parameters():
        torch.nn.init.normal_(p, std=0.5)
    h = torch.randn(2, 8, 3, 2)
    with torch.no_grad():
        out = attention(h)
        pixels = attention.qkv(attention.norm(h)).flatten(2)  # [B, 3 C, P]
        mixed = torch.zeros(2, 8, 6)
        for b in range(2):
            for head in range(2):
                q, k, v = (pixels[b, part * 8 + head * 4 : part * 8 + head * 4 + 4] for part in range(3))
                for i in range(6):
                    shares = ((q[:, i : i + 1] * k).sum(0) / 2).softmax(0)
                    mixed[b, head * 4 : head * 4 + 4, i] = (v * shares).sum(1)
        torch.testing.assert_close(out, h + attention.out(mixed.reshape(2, 8, 3, 2)))


@pytest.mark.parametrize(
    ("channels", "head_width", "heads"), [(32, 32, 1), (64, 32, 2), (12, 5, 2), (15, 4, 3), (4, 32, 1)]
)
def test_heads_divide_the_channels(channels, head_width, heads):
    assert Attention(channels, head_width).heads == heads


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8, 12, 32, 36, 100, 128, 256, 97])
def test_group_norm_takes_any_channel_count(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4
    better = [g for g in range(norm.num_groups + 1, 33) if channels % g == 0 and channels // g >= 4]
    assert not better


def test_zero_init_zeroes_weight_and_bias_of_the_same_module():
    linear = torch.nn.Linear(3, 2)
    assert zero_init(linear) is linear
    assert all((p == 0).all() for p in linear.parameters())


@pytest.mark.parametrize(("multipliers", "blocks"), [((1,), 1), ((1, 2), 1), ((1, 3, 2), 2)])
def test_the_unet_uses_every_skip_that_of_the_first_convolution_too(multipliers, blocks):
    net = UNetConfig(channels=4, multipliers=multipliers, blocks=blocks).build((1, 8, 8), 0)
    assert isinstance(net, UNet)
    down, up = ([block for stage in stages for block in stage] for stages in (net.down, net.up))
    assert len(down) == blocks * len(multipliers)
    assert len(up) == len(down) + 1
    width = 4 * multipliers[0]
    assert up[-1].conv1.weight.shape[:2] == (width, 2 * width)  # what comes up, beside the first convolution


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 8, 3)])
def test_the_unet_refuses_images_too_small_for_its_levels(shape):
    config = UNetConfig(channels=8, multipliers=(1, 1, 2))
    message = rf"images of {shape[1]}x{shape[2]} are too small for the 3 levels .* at least 4 pixels"
    with pytest.raises(ValueError, match=message):
        config.check(shape)
    with pytest.raises(ValueError, match="too small"):
        config.build(shape, 0)
    config.check((1, 4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": (1, 0)}, "every multiplier must be at least 1"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 2), "attention_levels": (2,)}, "attention_levels holds 2, .* levels 0 to 1"),
        ({"attention_levels": (-1,)}, "attention_levels holds -1"),
        ({"chanels": 8}, "did you mean 'channels'"),
    ],
)
def test_unet_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        UNetConfig(**options)
