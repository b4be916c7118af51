import pytest
import torch

from regionhash.parts.heads import LatentLayer, RunningScale, centre


def test_the_scale_is_that_of_what_was_seen_before():
    scale = RunningScale(3).train()
    first = torch.randn(50, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5
    out = scale(first)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    second = first + 100
    before = scale.mean.clone()
    out = scale(second)
    expected = (second - before) / (first.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


def test_what_happens_to_a_row_does_not_depend_on_the_rows_beside_it():
    scale = RunningScale(3).train()
    scale(torch.randn(50, 3))
    state = {name: value.clone() for name, value in scale.state_dict().items()}
    row, others = torch.randn(1, 3), torch.randn(9, 3) * 100
    alone = scale(row)
    scale.load_state_dict(state)
    torch.testing.assert_close(scale(torch.cat([row, others]))[:1], alone)


def test_the_average_of_early_steps_is_plain():
    scale = RunningScale(1).train()
    for value in (0.0, 3.0):
        scale(torch.full((4, 1), value))
    # The first batch is seen twice: before it is scaled, and after.
    assert scale.mean.item() == pytest.approx(1.0)
    scale.eval()(torch.full((4, 1), 99.0))
    assert scale.mean.item() == pytest.approx(1.0)


def test_latent_weights_start_as_asked():
    torch.manual_seed(0)
    layer = LatentLayer(1000, 64, std=0.005)
    assert layer.linear.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert LatentLayer(1000, 64).linear.weight.std().item() == pytest.approx(1000**-0.5, rel=0.05)
    assert layer(torch.randn(2, 1000)).shape == (2, 64)


@pytest.mark.parametrize("n_bits", [0, 4, 12, -8])
def test_bits_must_fill_bytes(n_bits):
    with pytest.raises(ValueError, match=f"multiple of 8, got {n_bits}"):
        LatentLayer(4, n_bits)


def test_centred_activations_lie_in_minus_one_to_one():
    a = torch.tensor([0.0, 0.5, 1.0])
    assert centre(a, True).tolist() == [-1, 0, 1]
    assert torch.equal(centre(a, False), a)
