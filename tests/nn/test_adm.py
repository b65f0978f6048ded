"""The ADM U-Net: its blocks against the formulas, its options, and the conversion of published weights."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmray.nn.adm import ADM, ADMConfig, Attention, ResBlock
from cmray.nn.adm_state import from_openai, to_openai
from cmray.nn.layers import GroupNorm32, Sinusoids

SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "head_width": 32}


def small(shape=(3, 8, 8), num_classes=0, **options):
    """A small network with random weights, so that no branch is zero."""
    torch.manual_seed(0)
    net = ADMConfig(**{**SMALL, **options}).build(shape, num_classes)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape) / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * torch.randn(p.shape))
    return net


def inputs(shape=(3, 8, 8), batch=2):
    g = torch.Generator().manual_seed(1)
    return torch.randn((batch, *shape), generator=g), torch.randn(batch, generator=g)


def test_the_embedding_is_cosines_then_sines_of_250_ln_sigma():
    sigma = torch.tensor([0.002, 0.5, 80.0])
    out = Sinusoids(6, scale=1000)(sigma.log() / 4)
    angles = 250 * sigma.double().log()[:, None] * 10000.0 ** (-torch.arange(3) / 3)
    torch.testing.assert_close(out.double(), torch.cat([angles.cos(), angles.sin()], dim=1), atol=3e-4, rtol=0)
    odd = Sinusoids(7, scale=1000)(sigma.log() / 4)
    assert torch.equal(odd, F.pad(out, (0, 1)))


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", [None, torch.nn.AvgPool2d(2), torch.nn.Upsample(scale_factor=2)], ids=str)
def test_a_residual_block_follows_its_formula(scale_shift, resample):
    torch.manual_seed(0)
    block = ResBlock(32, 64, ADMConfig(**{**SMALL, "scale_shift_norm": scale_shift}), resample)
    for p in block.conv2.parameters():
        torch.nn.init.normal_(p)
    h, emb = torch.randn(2, 32, 4, 6), torch.randn(2, 128)
    move = resample or (lambda t: t)
    group = lambda t, norm: F.group_norm(t, 32, norm.weight, norm.bias)
    r = block.conv1(move(F.silu(group(h, block.norm1))))
    linear = (emb @ block.modulation.weight.T + block.modulation.bias)[..., None, None]
    if scale_shift:
        m = group(r, block.norm2) * (1 + linear[:, :64]) + linear[:, 64:]
    else:
        m = group(r + linear, block.norm2)
    expected = block.skip(move(h)) + block.conv2(F.silu(m))
    torch.testing.assert_close(block(h, emb), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("options", "heads"), [({"head_width": 16}, 4), ({"head_width": None, "heads": 2}, 2)])
def test_attention_takes_q_then_k_then_v_each_head_after_head(options, heads):
    torch.manual_seed(0)
    attention = Attention(64, ADMConfig(**{**SMALL, **options}))
    for p in attention.out.parameters():
        torch.nn.init.normal_(p, std=0.2)
    h = torch.randn(2, 64, 3, 5)
    q, k, v = attention.qkv(attention.norm(h)).flatten(2).chunk(3, dim=1)
    d = 64 // heads
    mixed = []
    for i in range(heads):
        rows = slice(i * d, (i + 1) * d)
        shares = (q[:, rows].transpose(1, 2) @ k[:, rows] / d**0.5).softmax(-1)
        mixed.append(v[:, rows] @ shares.transpose(1, 2))
    expected = h + attention.out(torch.cat(mixed, dim=1).reshape(h.shape))
    torch.testing.assert_close(attention(h), expected, rtol=1e-5, atol=1e-5)


def test_attention_is_where_the_height_says_and_in_the_middle():
    net = ADMConfig(**{**SMALL, "multipliers": (1, 2, 2), "attention_resolutions": (4,)}).build((1, 8, 16), 0)
    assert isinstance(net, ADM)
    places = [name for name, module in net.named_modules() if isinstance(module, Attention)]
    assert places == ["down.3.1", "middle.1", "up.2.1", "up.3.1"]


@pytest.mark.parametrize("resolutions", [(3,), (8, 16), (4, 2, 1)])
def test_attention_at_a_height_that_no_level_has_is_refused(resolutions):
    config = ADMConfig(**{**SMALL, "multipliers": (1, 2, 2), "attention_resolutions": resolutions})
    missing = next(r for r in resolutions if r not in (8, 4, 2))
    message = (
        rf"^attention_resolutions has {missing}, which is the height of no level: for images of 8x16 they are 8, 4, 2; "
        r"with \[\] only the middle attends$"
    )
    for use in (config.check, lambda shape: config.build(shape, 0)):
        with pytest.raises(ValueError, match=message):
            use((1, 8, 16))


def test_the_default_heights_are_those_of_the_paper_of_which_small_images_have_some():
    config = ADMConfig(channels=32, multipliers=(1, 2), head_width=32)
    config.check((3, 16, 16))
    assert [config.attention_levels(height) for height in (64, 16, 4)] == [{1}, {0, 1}, set()]
    assert ADMConfig(**config.model_dump()).build((3, 4, 4), 0), "what a checkpoint says of a default stays allowed"


@pytest.mark.parametrize("resblock_updown", [True, False])
def test_every_cell_on_the_way_down_leaves_a_skip_for_one_on_the_way_up(resblock_updown):
    net = small(multipliers=(1, 2, 1), resblock_updown=resblock_updown)
    left, met = [], []
    for cell in net.down:
        cell[-1].register_forward_hook(lambda _, args, out: left.append(out))
    for cell in net.up:
        cell[0].register_forward_hook(lambda _, args, out: met.append(args[0]))
    net(*inputs(), None)
    assert len(left) == len(met) == 6
    for h, skip in zip(met, reversed(left), strict=True):
        assert torch.equal(h[:, -skip.shape[1] :], skip)


def test_the_noise_level_enters_as_1000_c_noise():
    net, c_noise = small(), inputs()[1]
    angles = (1000 * c_noise)[:, None] * net.embedding.fourier.frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(net.embedding(c_noise, None), F.silu(net.embedding.mlp(features)))


def test_the_defaults_are_the_imagenet_64_network():
    with torch.device("meta"):
        net = ADMConfig().build((3, 64, 64), 1000)
        assert net(torch.empty(1, 3, 64, 64), torch.empty(1), torch.zeros(1, dtype=torch.int64)).shape == (1, 3, 64, 64)
    assert sum(p.numel() for p in net.parameters()) == 295_899_267
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_width": 32, "heads": 2}, "exactly one of head_width and heads .* found head_width 32 and heads 2"),
        ({"head_width": None}, "exactly one of head_width and heads"),
        ({"head_width": 48}, "head_width 48 does not divide the 64 channels"),
        ({"head_width": None, "heads": 3}, "heads 3 does not divide the 64 channels"),
        ({"channels": 48}, r"channels 48 and multipliers \[1, 2\] give a level of 48 .* multiples of 32"),
        ({"multipliers": (1, 0)}, "every entry must be at least 1"),
        ({"attention_resolutions": (0,)}, "every entry must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ADMConfig(**{**SMALL, **options})


def test_the_head_width_is_64_unless_heads_are_given_and_survives_a_round_trip():
    assert ADMConfig().head_width == 64
    config = ADMConfig(heads=4)
    assert (config.heads, config.head_width) == (4, None)
    assert ADMConfig(**config.model_dump()) == config
    assert ADMConfig(**ADMConfig().model_dump()) == ADMConfig()


def test_images_that_do_not_fit_are_refused_in_one_sentence():
    config = ADMConfig(**{**SMALL, "multipliers": (1, 2, 2)})
    message = "images of 30x20 do not fit the 3 levels of multipliers, .* multiples of 4, as in 32x20"
    with pytest.raises(ValueError, match=message):
        config.check((3, 30, 20))
    with pytest.raises(ValueError, match="as in 4x4"):
        config.build((3, 2, 3), 0)
    config.check((1, 4, 12))
    narrow = ADMConfig(**{**SMALL, "attention_resolutions": (8,), "head_width": 64})
    with pytest.raises(ValueError, match="head_width 64 does not divide the 32 channels of a level with attention"):
        narrow.check((3, 8, 8))
    narrow.check((3, 16, 8))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"scale_shift_norm": False}, "down.1.0.modulation.weight"),
        ({"resblock_updown": False}, "down.2.0.strided.weight"),
        ({"blocks": 2}, "down.4.0.conv1.weight"),
        ({"attention_resolutions": (8,)}, "down.1.1.qkv.weight"),
    ],
)
def test_each_option_changes_what_is_built(options, field):
    shapes, other = ({k: p.shape for k, p in small(**o).named_parameters()} for o in ({}, options))
    assert shapes.get(field) != other[field]


def test_checkpointing_changes_no_bit_with_dropout():
    x, c_noise = inputs()
    label = torch.tensor([0, 2])
    results = []
    for on in (False, True):
        net = small(num_classes=3, dropout=0.3, activation_checkpointing=on)
        x.requires_grad_()
        torch.manual_seed(5)
        out = net(x, c_noise, label)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *net.parameters()])])
        assert not torch.equal(net(x, c_noise, label), out), "dropout is off"
        net.eval()
        assert torch.equal(net(x, c_noise, label), net(x, c_noise, label))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("resblock_updown", [True, False])
def test_forward_mode_derivatives_go_through_the_whole_network(resblock_updown):
    net = small(resblock_updown=resblock_updown).double()
    x, c_noise = (t.double() for t in inputs())
    dx, dc = torch.randn_like(x), 1e-3 * torch.randn_like(c_noise)
    with sdpa_kernel(SDPBackend.MATH):
        out, tangent = torch.func.jvp(lambda x, c: net(x, c, None), (x, c_noise), (dx, dc))
        h = 1e-5
        slope = (net(x + h * dx, c_noise + h * dc, None) - net(x - h * dx, c_noise - h * dc, None)) / (2 * h)
    torch.testing.assert_close(out, net(x, c_noise, None))
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-6)


def test_norms_and_the_output_are_float32_under_autocast(monkeypatch):
    seen = set()
    group_norm = F.group_norm
    monkeypatch.setattr(F, "group_norm", lambda x, *args: seen.add(x.dtype) or group_norm(x, *args))
    net, (x, c_noise) = small(), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x, c_noise, None)
        assert GroupNorm32(32, 32)(torch.randn(2, 32, 4, 4).bfloat16()).dtype == torch.bfloat16
    assert out.dtype == torch.float32
    assert seen == {torch.float32}
    torch.testing.assert_close(out, net(x, c_noise, None), rtol=0, atol=0.2)


def test_published_names_come_and_go_without_a_change():
    config = ADMConfig(**{**SMALL, "resblock_updown": False})
    net = small(num_classes=3, resblock_updown=False)
    state = net.state_dict()
    theirs = to_openai(state, config)
    assert {"time_embed.0.weight", "label_emb.weight", "input_blocks.0.0.bias", "input_blocks.2.0.op.weight"} <= set(
        theirs
    )
    assert {"middle_block.1.proj_out.bias", "output_blocks.1.2.conv.weight", "out.0.weight", "out.2.bias"} <= set(
        theirs
    )
    assert "output_blocks.0.0.in_layers.2.weight" in theirs
    back = from_openai(theirs, config)
    assert list(back) == list(state)
    assert all(back[key] is state[key] for key in state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 64}, "the weights have channels 32, but the config has 64"),
        ({"multipliers": (2, 2)}, r"multipliers\[0\] x channels 32, but the config has 64"),
        ({"blocks": 2}, r"multipliers x \(blocks \+ 1\) 4, but the config has 6"),
        ({"scale_shift_norm": False}, "scale_shift_norm True, but the config has False"),
        ({"resblock_updown": False}, "resblock_updown True, but the config has False"),
    ],
)
def test_weights_of_another_network_are_refused(options, message):
    config, state = ADMConfig(**{**SMALL, **options}), small().state_dict()
    with pytest.raises(ValueError, match=message):
        from_openai(to_openai(state, ADMConfig(**SMALL)), config)
    with pytest.raises(ValueError, match=message):
        to_openai(state, config)
    with pytest.raises(ValueError, match=r"not the weights of an ADM U-Net: 'time_embed\.0\.weight' is missing"):
        from_openai({}, config)
