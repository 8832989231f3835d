import pytest
import torch
from torch import Tensor

from models.augmentation import Augmentation, Strength

GEOMETRIC = Strength(flip=0.5, rotation=15.0, scale=0.15, translation=0.06, elastic=0.02)
ALL = GEOMETRIC._replace(brightness=0.1, contrast=0.25, gamma=0.4, noise=0.05)
EACH = [Strength()._replace(**{name: value}) for name, value in ALL._asdict().items()]

CPU = torch.device("cpu")


def augmented(
    images: Tensor, masks: Tensor | None = None, seed: int = 0, **strength: float
) -> tuple[Tensor, Tensor]:
    return Augmentation(Strength(**strength), seed, CPU)(images, as_masks(images) if masks is None else masks)


def as_masks(images: Tensor) -> Tensor:
    return (images > 0.5).float()


def draw(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Make every uniform draw `value`: 0 is the lower bound, 1 the upper, 0.5 means no change."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, value))


def random_images(count: int, height: int, width: int) -> Tensor:
    return torch.empty(count, 1, height, width).uniform_(generator=torch.Generator().manual_seed(7))


def discs(count: int, side: int) -> Tensor:
    """Masks (count, 1, side, side) of a centred disc with a diameter of half the side."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = (x - (side - 1) / 2) ** 2 + (y - (side - 1) / 2) ** 2 <= (side / 4) ** 2
    return disc.float().expand(count, 1, side, side)


def ramps(count: int, side: int) -> Tensor:
    """Images (count, 1, side, side) whose grey value is the x coordinate as a share of the side."""
    return ((torch.arange(side) + 0.5) / side).expand(count, 1, side, side)


def test_zero_strength_returns_the_same_tensors() -> None:
    images = random_images(2, 8, 8)
    masks = as_masks(images)
    changed = augmented(images, masks)
    assert changed[0] is images and changed[1] is masks


@pytest.mark.parametrize("strength", [*EACH, GEOMETRIC, ALL], ids=[*ALL._fields, "geometric", "all"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 32, 32), (2, 24, 40)])
def test_images_and_masks_stay_in_range(strength: Strength, channels: int, height: int, width: int) -> None:
    images = random_images(8, height, width)
    masks = as_masks(images).repeat(1, channels, 1, 1)
    before = images.clone(), masks.clone()
    x, y = Augmentation(strength, 0, CPU)(images, masks)
    assert x.shape == images.shape and x.dtype == torch.float32
    assert y.shape == masks.shape and y.dtype == torch.float32
    assert x.min() >= 0 and x.max() <= 1 and y.min() == 0 and y.max() <= 1 + 1e-6
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])  # the inputs are not modified
    assert not torch.equal(x, images)
    geometric = any(
        getattr(strength, name) for name in ("flip", "rotation", "scale", "translation", "elastic")
    )
    assert torch.equal(y, masks) != geometric


@pytest.mark.parametrize(("value", "turns"), [(0.0, -1), (1.0, 1)])
def test_rotation_is_in_pixel_coordinates(monkeypatch: pytest.MonkeyPatch, value: float, turns: int) -> None:
    draw(monkeypatch, value)
    square = random_images(2, 8, 8)
    x, y = augmented(square, rotation=90.0)
    turned = torch.rot90(square, turns, dims=(2, 3))
    torch.testing.assert_close(x, turned, rtol=0, atol=1e-5)
    torch.testing.assert_close(y, as_masks(turned), rtol=0, atol=1e-5)

    wide = random_images(2, 8, 12)
    x, y = augmented(wide, rotation=90.0)
    turned = torch.rot90(wide[..., 2:10], turns, dims=(2, 3))
    torch.testing.assert_close(x[..., 2:10], turned, rtol=0, atol=1e-5)
    torch.testing.assert_close(y[..., 2:10], as_masks(turned), rtol=0, atol=1e-5)
    assert not x[..., [0, 1, 10, 11]].any()  # from above and below the image


def test_translation_is_a_share_of_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, 1.0)
    images = random_images(2, 8, 16)
    x, y = augmented(images, translation=0.25)
    expected = torch.zeros_like(images)
    expected[..., :-2, :-4] = images[..., 2:, 4:]
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(y, as_masks(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("value", "side"), [(0.0, 4), (0.5, 8), (1.0, 16)])
def test_scale_multiplies_or_divides_the_size(
    monkeypatch: pytest.MonkeyPatch, value: float, side: int
) -> None:
    draw(monkeypatch, value)
    square = torch.zeros(1, 1, 32, 32)
    square[..., 12:20, 12:20] = 1
    _, y = augmented(square, scale=1.0)
    expected = torch.zeros_like(y)
    expected[..., 16 - side // 2 : 16 + side // 2, 16 - side // 2 : 16 + side // 2] = 1
    assert torch.equal(y >= 0.5, expected == 1)


def test_flip_mirrors_alone_and_combined_with_other_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(3, 8, 12)
    x, y = augmented(images, flip=1.0)
    assert torch.equal(x, images.flip(-1)) and torch.equal(y, as_masks(images).flip(-1))
    draw(monkeypatch, 0.5)
    x, y = augmented(images, flip=1.0, rotation=30.0, scale=0.5, translation=0.5)
    torch.testing.assert_close(x, images.flip(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(y, as_masks(images).flip(-1), rtol=0, atol=1e-5)


def test_flip_is_applied_before_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, 0.0)
    images = random_images(2, 8, 8)
    x, _ = augmented(images, flip=1.0, rotation=90.0)
    torch.testing.assert_close(x, torch.rot90(images.flip(-1), -1, dims=(2, 3)), rtol=0, atol=1e-5)


def test_elastic_displacement_has_its_standard_deviation_without_folds() -> None:
    side, elastic = 33, 0.03
    images = ramps(3000, side)
    x, _ = augmented(images, elastic=elastic)
    middle = x[:, 0, side // 2, side // 2]  # a node of the displacement grid
    assert middle.std().item() == pytest.approx(elastic, rel=0.05)
    assert middle.mean().item() == pytest.approx(0.5, abs=0.003)

    rows = augmented(ramps(200, 65), elastic=ALL.elastic)[0][:, 0, 16:-16, 16:-16]
    assert (rows.diff(dim=-1) > 0).all()


@pytest.mark.parametrize(
    ("strength", "value", "expected"),
    [
        ({"brightness": 0.2}, 0.0, [0.2, 0.4]),
        ({"brightness": 0.2}, 1.0, [0.6, 0.8]),
        ({"brightness": 0.5}, 1.0, [0.9, 1.0]),  # clipped at 1
        ({"contrast": 1.0}, 0.0, [0.45, 0.55]),
        ({"contrast": 1.0}, 1.0, [0.3, 0.7]),
        ({"gamma": 1.0}, 0.0, [0.4**0.5, 0.6**0.5]),
        ({"gamma": 1.0}, 0.5, [0.4, 0.6]),
        ({"gamma": 1.0}, 1.0, [0.16, 0.36]),
    ],
)
def test_grey_values_by_hand(
    monkeypatch: pytest.MonkeyPatch, strength: dict[str, float], value: float, expected: list[float]
) -> None:
    draw(monkeypatch, value)
    images = torch.tensor([0.4, 0.6]).expand(2, 1, 4, 2)
    x, _ = augmented(images, **strength)
    torch.testing.assert_close(x, torch.tensor(expected).expand(2, 1, 4, 2))


def test_noise_is_gaussian_up_to_its_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.full((200, 1, 16, 16), 0.5)
    deviations = augmented(images, noise=0.1)[0].std(dim=(1, 2, 3))
    assert deviations.min() < 0.01 and 0.09 < deviations.max() < 0.115
    draw(monkeypatch, 1.0)
    x, _ = augmented(images, noise=0.1)
    assert x.std().item() == pytest.approx(0.1, rel=0.02)
    assert ((x - 0.5).abs() < 0.1).float().mean().item() == pytest.approx(0.6827, abs=0.01)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
def test_mask_moves_exactly_with_its_image(height: int, width: int) -> None:
    blobs = torch.nn.functional.avg_pool2d(random_images(32, height + 8, width + 8), 9, stride=1) > 0.5
    masks = torch.cat([blobs, blobs], dim=1).float()
    x, y = Augmentation(GEOMETRIC, 0, CPU)(blobs.float(), masks)
    assert torch.equal(x, y[:, :1]) and torch.equal(x, y[:, 1:])
    assert 0.3 < y.float().mean() < 0.7


def test_geometric_transforms_keep_the_area_on_average() -> None:
    masks = discs(500, 64)
    _, y = Augmentation(GEOMETRIC, 0, CPU)(masks, masks)
    areas = y.sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3))
    assert areas.mean().item() == pytest.approx(1, abs=0.03)
    assert areas.min() > 0.6 and areas.max() < 1.6


def test_equal_seeds_give_identical_results() -> None:
    images = random_images(4, 16, 16)
    masks = as_masks(images)
    first, second, other = (Augmentation(ALL, seed, CPU) for seed in (0, 0, 1))
    state = first.generator.get_state()
    x, y = first(images, masks)
    assert torch.equal(x, second(images, masks)[0])
    assert not torch.equal(x, other(images, masks)[0])
    assert not torch.equal(x, first(images, masks)[0])  # the next batch gets new random values
    first.generator.set_state(state)
    again = first(images, masks)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])


def test_transform_does_not_depend_on_other_images() -> None:
    images = random_images(6, 16, 16)
    others = images.clone()
    others[2] = 0.25
    x, y = augmented(images, **ALL._asdict())
    x_others, y_others = augmented(others, **ALL._asdict())
    rest = [0, 1, 3, 4, 5]
    assert torch.equal(x[rest], x_others[rest]) and torch.equal(y[rest], y_others[rest])


def test_positions_in_a_batch_are_equivalent() -> None:
    same = random_images(1, 16, 16).expand(8, 1, 16, 16)
    x, _ = augmented(same, **ALL._asdict())
    assert len({image.numpy().tobytes() for image in x}) == 8

    ramp, augment = ramps(8, 4), Augmentation(Strength(flip=0.3), 0, CPU)
    mirrored = torch.stack([augment(ramp, as_masks(ramp))[0][:, 0, 0, 0] > 0.5 for _ in range(1000)])
    torch.testing.assert_close(mirrored.float().mean(dim=0), torch.full((8,), 0.3), rtol=0, atol=0.05)
