import pytest
import torch

from asymvae.training.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss


def test_a_logit_sees_70_pixels() -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator().eval()
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = model(image)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0)
    assert (int(seen.any(0).sum()), int(seen.any(1).sum())) == (70, 70)


def test_weights_start_as_the_papers_do() -> None:
    torch.manual_seed(0)
    state = PatchDiscriminator().state_dict()
    assert sum(tensor.numel() for name, tensor in state.items() if name.endswith(("weight", "bias"))) == 2_765_633
    assert state["main.5.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["main.6.weight"].mean().item() == pytest.approx(1, abs=0.01)
    assert "main.5.bias" not in state


def test_hinge_loss() -> None:
    """Half the means of max(0, 1 - real) and max(0, 1 + fake)."""
    assert hinge_loss(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])).item() == pytest.approx(0.5 * (0.5 + 1.0))


def test_the_adversarial_pull_becomes_as_strong_as_the_reconstruction_s() -> None:
    last_layer = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = last_layer.square().sum(), 0.01 * last_layer.sum()
    weight = adaptive_weight(reconstruction, adversarial, last_layer)
    assert weight.item() == pytest.approx(10 / (0.01 * 2**0.5 + 1e-4))
    assert not weight.requires_grad
    assert adaptive_weight(1e6 * reconstruction, 0 * adversarial, last_layer).item() == 1e4
    (reconstruction + weight * adversarial).backward()  # the graph is still there
