from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from asymvae.training.lpips import LPIPS

SLICE_ENDS = (4, 9, 16, 23, 30)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Random weights under the names of torchvision and of the lpips package, which are not negative there either."""
    torch.manual_seed(0)
    model = LPIPS()
    vgg = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("features")}
    linear = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    return vgg | linear


@pytest.fixture(scope="module")
def two_files(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("weights")
    vgg, linear = folder / "vgg16.safetensors", folder / "vgg.pth"
    save_file({name: t for name, t in tensors.items() if name.startswith("features")}, vgg)
    torch.save({name: t for name, t in tensors.items() if name.startswith("lin")}, linear)
    return [str(vgg), str(linear)]


def images(seed: int, size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_alike_is_zero_and_the_gradient_reaches_the_image(two_files: list[str]) -> None:
    model = LPIPS.load(*two_files).train()
    a, b = images(1), images(2)
    assert model(a, a).tolist() == [0, 0]
    near, far = model(a, a + 0.1 * (b - a)), model(a, b)
    assert near.shape == (2,)
    assert (near > 0).all()
    assert (far > near).all()
    assert model(a[:1], b[:1]).item() == pytest.approx(far[0].item(), rel=1e-5)
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    model(a[:1], flat).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()
    assert flat.grad.any()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_formula_of_the_paper(tensors: dict[str, Tensor], two_files: list[str]) -> None:
    """Equation 1 by hand: the features of relu1_2, 2_2, 3_3, 4_3 and 5_3, each pixel's scaled to length 1."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's, for [0, 1]
    tapped_at = {2: 0, 7: 1, 14: 2, 21: 3, 28: 4}

    def unit_features(image: Tensor) -> list[Tensor]:
        x = ((image + 1) / 2 - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
        taps = []
        for k in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
            if k in (5, 10, 17, 24):
                x = torch.nn.functional.max_pool2d(x, 2)
            weight, bias = tensors[f"features.{k}.weight"], tensors[f"features.{k}.bias"]
            x = torch.nn.functional.conv2d(x, weight, bias, padding=1).clamp_min(0)
            if k in tapped_at:
                taps.append(x / x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-9))
        return taps

    a, b = images(3, 48), images(4, 48)
    distance = torch.zeros(2)
    for layer, (of_a, of_b) in enumerate(zip(unit_features(a), unit_features(b), strict=True)):
        weighted = tensors[f"lin{layer}.model.1.weight"] * (of_a - of_b).square()
        distance += weighted.sum(1).mean((1, 2))
    torch.testing.assert_close(LPIPS.load(*two_files)(a, b), distance, rtol=1e-4, atol=1e-6)


def test_the_whole_state_dict_of_the_lpips_package_gives_the_same(
    tensors: dict[str, Tensor], two_files: list[str], tmp_path: Path
) -> None:
    whole: dict[str, Tensor] = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for name, tensor in tensors.items():
        if name.startswith("lin"):
            whole |= {name: tensor, name.replace("lin", "lins.", 1): tensor}
        else:
            index = int(name.split(".")[1])
            piece = 1 + sum(index >= end for end in SLICE_ENDS)
            whole[name.replace("features", f"net.slice{piece}")] = tensor
    torch.save(whole, tmp_path / "lpips.pth")
    a, b = images(5), images(6)
    assert torch.equal(LPIPS.load(str(tmp_path / "lpips.pth"))(a, b), LPIPS.load(*two_files)(a, b))


def test_what_is_missing_is_named_with_its_source(
    tensors: dict[str, Tensor], two_files: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"lacks lin0\.model\.1\.weight.* and 1 more.*lpips/weights/v0\.1/vgg\.pth"):
        LPIPS.load(two_files[0])
    with pytest.raises(ValueError, match=r"lacks features\.0\.weight.* and 22 more.*vgg16-397923af\.pth"):
        LPIPS.load(two_files[1])
    other = tmp_path / "alex.pth"
    torch.save({name: t[:, :32] for name, t in tensors.items() if name.startswith("lin")}, other)
    with pytest.raises(ValueError, match=r"other shapes of lin0\.model\.1\.weight"):
        LPIPS.load(two_files[0], str(other))
    with pytest.raises(FileNotFoundError):
        LPIPS.load(str(tmp_path / "none.pth"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"features.0.weight": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="never unpickled"):
        LPIPS.load(str(tmp_path / "evil.pth"))
