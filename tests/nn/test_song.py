"""DDPM++ and NCSN++: their layers against the formulas, their options, and the conversion of EDM's weights."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmray.nn.layers import RandomFourier
from cmray.nn.song import DDPMppConfig, NCSNppConfig
from cmray.nn.song_layers import SQRT_HALF, Attention, Block, DownConv, FusedDownConv, SongEmbedding, UpConv
from cmray.nn.song_state import from_edm, to_edm

SMALL = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
CONFIGS = [DDPMppConfig, NCSNppConfig]


def inputs(shape=(3, 8, 8), batch=2):
    g = torch.Generator().manual_seed(1)
    return torch.randn((batch, *shape), generator=g), torch.randn(batch, generator=g)


def small(config, num_classes=0, **options):
    """A small network with random weights, so that no branch is near zero."""
    torch.manual_seed(0)
    net = config(**{**SMALL, **options}).build((3, 8, 8), num_classes)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape) / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * torch.randn(p.shape))
    return net


@pytest.mark.parametrize(
    ("config", "num_classes", "parameters"),
    [
        (DDPMppConfig, 0, 55_732_739),
        (DDPMppConfig, 10, 55_734_147),
        (NCSNppConfig, 0, 56_395_523),
        (NCSNppConfig, 10, 56_398_339),
    ],
)
def test_the_defaults_are_the_cifar_10_networks(config, num_classes, parameters):
    with torch.device("meta"):
        net = config().build((3, 32, 32), num_classes)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)} == {0.13}


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_the_filters_halve_and_double_and_keep_the_mean(taps):
    g = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 6, 8), generator=g)
    weights = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    n, margin = len(taps), len(taps) // 2 - 1
    padded = F.pad(x, (margin,) * 4)
    expected = torch.zeros(2, 3, 3, 4)
    for i in range(n):
        for j in range(n):
            expected += weights[i] * weights[j] * padded[:, :, i : i + 5 : 2, j : j + 7 : 2]
    down, up = DownConv(3, 3, 1, taps), UpConv(3, 3, 1, taps)
    for conv in (down, up):
        torch.nn.init.dirac_(conv.weight)
    torch.testing.assert_close(down(x), expected)
    y = torch.randn((2, 3, 3, 4), generator=g)
    torch.testing.assert_close((down(x) * y).sum() * 4, (x * up(y)).sum())  # transposes of one another, times 4
    ones = torch.ones(1, 3, 8, 8)
    torch.testing.assert_close(down(ones)[..., 1:-1, 1:-1], torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(up(ones)[..., 1:-1, 1:-1], torch.ones(1, 3, 14, 14))
    assert "taps" not in down.state_dict()


def test_the_fused_convolution_is_a_convolution_then_the_filter_with_the_padding_before_both():
    torch.manual_seed(0)
    fused = FusedDownConv(3, 5, 3, (1, 3, 3, 1))
    torch.nn.init.normal_(fused.bias)
    halve = DownConv(5, 5, 1, (1, 3, 3, 1))
    torch.nn.init.dirac_(halve.weight)
    x = torch.randn(2, 3, 12, 16)
    out = fused(x)
    assert out.shape == (2, 5, 6, 8)
    plain = halve(F.conv2d(x, fused.weight, padding=1)) + fused.bias[:, None, None]
    torch.testing.assert_close(out[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, plain, atol=1e-3)  # at the border the convolution reaches into the padding
    # all of it: on an image with a frame of zeros no padding matters
    framed = F.pad(x, (4, 4, 4, 4))
    inner = (halve(F.conv2d(framed, fused.weight, padding=1)) + fused.bias[:, None, None])[..., 2:-2, 2:-2]
    torch.testing.assert_close(out, inner, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 0.02])
def test_the_embedding_follows_its_formula(scale):
    torch.manual_seed(0)
    embedding = SongEmbedding(8, 12, num_classes=3, fourier_scale=scale)
    c_noise, label = torch.tensor([-1.5, 0.3]), torch.tensor([2, 0])
    if scale is None:
        frequencies = 10000.0 ** (-torch.arange(4) / 3)
    else:
        frequencies = 2 * math.pi * embedding.state_dict()["encoding.frequencies"]
    angles = c_noise[:, None] * frequencies
    emb = torch.cat([angles.sin(), angles.cos()], dim=1)
    emb = emb + math.sqrt(3) * embedding.classes.weight.T[label] + embedding.classes.bias
    torch.testing.assert_close(embedding(c_noise, label), F.silu(embedding.lin1(F.silu(embedding.lin0(emb)))))
    with pytest.raises(ValueError, match="class-conditional and needs labels"):
        embedding(c_noise, None)


def test_the_fourier_frequencies_have_their_scale():
    torch.manual_seed(0)
    frequencies = RandomFourier(20_000, scale=0.02).state_dict()["frequencies"]
    assert frequencies.std() == pytest.approx(0.02, rel=0.05)
    net = NCSNppConfig(**SMALL).build((1, 8, 8), 0)
    assert net.state_dict()["embedding.encoding.frequencies"].std() > 5


def test_a_block_follows_its_formula():
    torch.manual_seed(0)
    block = Block(16, 32, 8, dropout=0.0, attention=True, resample=None, taps=(1, 1))
    for p in [*block.conv2.parameters(), *block.attention.out.parameters(), block.norm1.weight, block.norm2.bias]:
        torch.nn.init.normal_(p)
    h, emb = torch.randn(2, 16, 4, 6), torch.randn(2, 8)
    out = block(h, emb)
    r = F.group_norm(h, 4, block.norm1.weight, block.norm1.bias, eps=1e-6)
    r = block.conv1(F.silu(r)) + block.shift(emb)[..., None, None]
    r = F.group_norm(r, 8, block.norm2.weight, block.norm2.bias, eps=1e-6)
    h = (block.skip(h) + block.conv2(F.silu(r))) * SQRT_HALF
    attention = block.attention
    q, k, v = attention.qkv(attention.norm(h)).flatten(2).chunk(3, dim=1)
    mixed = v @ (q.transpose(1, 2) @ k / math.sqrt(32)).softmax(-1).transpose(1, 2)
    expected = (h + attention.out(mixed.reshape(h.shape))) * SQRT_HALF
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_weights_start_uniform_branches_near_zero_and_the_output_at_zero():
    torch.manual_seed(0)
    net = DDPMppConfig(**{**SMALL, "channels": 64}).build((3, 8, 8), 0)
    state = net.state_dict()

    def spread(key):
        """Largest weight in units of Xavier's bound sqrt(6 / (fan_in + fan_out))."""
        weight = state[key + ".weight"]
        fans = (weight.shape[0] + weight.shape[1]) * math.prod(weight.shape[2:])
        assert not state[key + ".bias"].any()
        return weight.abs().max().item() / math.sqrt(6 / fans)

    for key in ("inp", "embedding.lin0", "down.0.blocks.0.conv1", "down.1.enter.skip", "up.0.blocks.0.shift"):
        assert spread(key) == pytest.approx(1, rel=0.01), key
    assert spread("middle.0.attention.qkv") == pytest.approx(math.sqrt(0.2), rel=0.01)
    for key in ("down.0.blocks.0.conv2", "middle.0.attention.out"):
        assert spread(key) == pytest.approx(1e-5, rel=0.01), key
    assert spread("conv_out") == 0


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (DDPMppConfig, {"fourier_scale": 16}, "found embedding 'positional' and fourier_scale 16"),
        (NCSNppConfig, {"fourier_scale": None}, "found embedding 'fourier' and fourier_scale None"),
        (NCSNppConfig, {"embedding": "positional", "fourier_scale": 1}, "embedding 'positional' and fourier_scale 1"),
        (NCSNppConfig, {"resample_filter": (1, 2, 1)}, "even number of taps"),
        (NCSNppConfig, {"resample_filter": (1, -1)}, "positive sum"),
        (DDPMppConfig, {"multipliers": (0,)}, "every entry must be at least 1"),
        (DDPMppConfig, {"encoder": "skip"}, "encoder"),
        (DDPMppConfig, {"dropout": 1.0}, "dropout"),
    ],
)
def test_options_that_contradict_are_refused(config, options, message):
    with pytest.raises(ValidationError, match=message):
        config(**options)


def test_the_fourier_scale_is_16_where_there_are_frequencies():
    assert NCSNppConfig().fourier_scale == 16
    assert NCSNppConfig(fourier_scale=0.02).fourier_scale == 0.02
    assert DDPMppConfig().fourier_scale is None
    assert DDPMppConfig(embedding="fourier").fourier_scale == 16
    assert NCSNppConfig(embedding="positional").fourier_scale is None
    for config in (NCSNppConfig(), DDPMppConfig(), NCSNppConfig(embedding="positional")):
        assert type(config)(**config.model_dump()) == config


@pytest.mark.parametrize("config", CONFIGS)
def test_images_that_do_not_fit_are_refused_in_one_sentence(config):
    message = "images of 30x20 do not fit the 3 levels of multipliers, .* multiples of 4, as in 32x20"
    with pytest.raises(ValueError, match=message):
        config().check((3, 30, 20))
    config().check((1, 28, 12))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"encoder": "residual"}, "down.1.residual.weight"),
        ({"noise_multiplier": 2}, "embedding.lin0.weight"),
        ({"blocks": 2}, "down.0.blocks.1.conv1.weight"),
        ({"embedding": "fourier"}, "embedding.encoding.frequencies"),
        ({"attention_resolutions": (8,)}, "up.0.blocks.1.attention.qkv.weight"),
    ],
)
def test_each_option_changes_what_is_built(options, key):
    state, other = (small(DDPMppConfig, **o).state_dict() for o in ({}, options))
    assert key not in state or state[key].shape != other[key].shape
    assert key in other


@pytest.mark.parametrize("config", CONFIGS)
def test_attention_at_a_height_that_no_level_has_is_refused(config):
    odd = config(**{**SMALL, "attention_resolutions": (4, 16)})
    message = r"^attention_resolutions has 16, which is the height of no level: for images of 8x12 they are 8, 4; with"
    for use in (odd.check, lambda shape: odd.build(shape, 0)):
        with pytest.raises(ValueError, match=message):
            use((1, 8, 12))
    config(**{**SMALL, "attention_resolutions": ()}).check((1, 8, 12))
    config(multipliers=(1, 1)).check((1, 8, 8))  # the default is that of 32 pixels


def test_attention_is_where_the_height_says_in_the_middle_and_last_on_the_way_up():
    net = DDPMppConfig(**{**SMALL, "blocks": 2}).build((1, 8, 16), 0)
    places = [name for name, module in net.named_modules() if isinstance(module, Attention)]
    names = ("down.1.blocks.0", "down.1.blocks.1", "middle.0", "up.1.blocks.2")
    assert places == [f"{name}.attention" for name in names]


def test_the_residual_encoder_carries_the_image_and_the_skips_end_on_the_way_up():
    net = small(NCSNppConfig, dropout=0, multipliers=(1, 2, 2))
    inputs_of, outputs_of = {}, {}
    for name, module in net.named_modules():

        def keep(_, args, out, name=name):
            inputs_of[name], outputs_of[name] = args[0], out

        module.register_forward_hook(keep)
    x, c_noise = inputs()
    net(x, c_noise, None)
    image, skips = x, [outputs_of["inp"], outputs_of["down.0.blocks.0"]]
    for level in (1, 2):
        assert torch.equal(inputs_of[f"down.{level}.enter"], skips[-1])
        assert torch.equal(inputs_of[f"down.{level}.residual"], image)
        image = (outputs_of[f"down.{level}.enter"] + outputs_of[f"down.{level}.residual"]) * SQRT_HALF
        torch.testing.assert_close(inputs_of[f"down.{level}.blocks.0"], image)
        image = inputs_of[f"down.{level}.blocks.0"]
        skips += [image, outputs_of[f"down.{level}.blocks.0"]]
    for level in (2, 1, 0):
        for i in (0, 1):
            skip = skips.pop()
            assert torch.equal(inputs_of[f"up.{level}.blocks.{i}"][:, -skip.shape[1] :], skip)
    assert not skips


@pytest.mark.parametrize("config", CONFIGS)
def test_checkpointing_changes_no_bit_with_dropout(config):
    x, c_noise = inputs()
    results = []
    for on in (False, True):
        net = small(config, dropout=0.3, activation_checkpointing=on)
        x.requires_grad_()
        torch.manual_seed(5)
        out = net(x, c_noise, None)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *net.parameters()])])
        assert not torch.equal(net(x, c_noise, None), out), "dropout is off"
        net.eval()
        assert torch.equal(net(x, c_noise, None), net(x, c_noise, None))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("config", CONFIGS)
def test_forward_mode_derivatives_go_through_the_whole_network(config):
    net = small(config, dropout=0, num_classes=3).double()
    x, c_noise = (t.double() for t in inputs())
    label = torch.tensor([0, 2])
    dx, dc = torch.randn_like(x), 1e-2 * torch.randn_like(c_noise)
    with sdpa_kernel(SDPBackend.MATH):
        out, tangent = torch.func.jvp(lambda x, c: net(x, c, label), (x, c_noise), (dx, dc))
        h = 1e-5
        slope = (net(x + h * dx, c_noise + h * dc, label) - net(x - h * dx, c_noise - h * dc, label)) / (2 * h)
    torch.testing.assert_close(out, net(x, c_noise, label))
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_edm_names_come_and_go_without_a_change(config, num_classes):
    options = config(**SMALL)
    state = small(config, num_classes).state_dict()
    theirs = to_edm(state, options, height=8)
    assert {"model.enc.8x8_conv.weight", "model.enc.4x4_down.conv0.resample_filter"} <= set(theirs)
    assert {"model.dec.4x4_in0.qkv.bias", "model.dec.8x8_up.skip.weight", "model.dec.8x8_aux_conv.bias"} <= set(theirs)
    assert ("model.enc.4x4_aux_residual.resample_filter" in theirs) == (config is NCSNppConfig)
    assert ("model.map_noise.freqs" in theirs) == (config is NCSNppConfig)
    rows = theirs["model.dec.4x4_in0.qkv.weight"]  # EDM: q, k and v of a channel beside each other
    assert torch.equal(rows[0::3], state["middle.0.attention.qkv.weight"][:32])
    assert torch.equal(rows[2::3], state["middle.0.attention.qkv.weight"][64:])
    plain = {key.removeprefix("model."): tensor for key, tensor in theirs.items()}
    augmented = {**theirs, "model.map_augment.weight": torch.zeros(16, 9)}
    for source in (theirs, plain, augmented):
        back = from_edm(source, options)
        assert set(back) == set(state)
        assert all(torch.equal(back[key], state[key]) for key in state)


def test_weights_of_another_network_are_refused():
    theirs = to_edm(small(NCSNppConfig).state_dict(), NCSNppConfig(**SMALL), height=8)
    with pytest.raises(ValueError, match=r"is not the resample_filter \[1.0, 1.0\]"):
        from_edm(theirs, NCSNppConfig(**SMALL, resample_filter=(1, 1)))
    deeper = to_edm(small(NCSNppConfig, blocks=2).state_dict(), NCSNppConfig(**{**SMALL, "blocks": 2}), height=8)
    with pytest.raises(ValueError, match=r"no place for 'enc\.8x8_block1\.norm0\.weight'"):
        from_edm(deeper, NCSNppConfig(**SMALL))
    with pytest.raises(ValueError, match=r"no place for 'head\.weight'"):
        to_edm({"head.weight": torch.zeros(1)}, NCSNppConfig(**SMALL))
    with pytest.raises(ValueError, match="not the weights of EDM's"):
        from_edm({"out.0.weight": torch.zeros(1)}, NCSNppConfig(**SMALL))
