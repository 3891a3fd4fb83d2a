from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.pictures import digits, in_colour
from trainers.config import Augment
from trainers.data.augment import augment, mix, partners
from trainers.data.keyed import Keyed

SAMPLES = np.arange(100)
EVERYTHING: dict[str, Any] = {
    "flip": True,
    "vertical_flip": True,
    "rotate": 20,
    "translate": 0.1,
    "scale": 0.2,
    "crop": 0.3,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
    "noise": 0.1,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as a rank; more of them wait for each other where the machine is busy


def pictures(size: int = 8) -> Tensor:
    """Return 100 coloured digits as floats in channels_last."""
    pixels = in_colour(digits(100)[0])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div(255)
    if size != 8:
        images = torch.nn.functional.interpolate(images, (size, size))
    return images.contiguous(memory_format=torch.channels_last)


def changed(images: Tensor, config: dict[str, Any], samples: np.ndarray = SAMPLES, epoch: int = 1) -> Tensor:
    return augment(images.clone(memory_format=torch.preserve_format), Augment(**config), Keyed(3, epoch, samples))


@pytest.mark.parametrize("size", [8, 13, 28])
@pytest.mark.parametrize("name", [*EVERYTHING, "all of them"])
def test_a_sample_comes_out_bit_for_bit_the_same_in_any_company(name: str, size: int) -> None:
    config = EVERYTHING if name == "all of them" else {name: EVERYTHING[name]}
    images = pictures(size)
    together = changed(images, config)
    alone = torch.cat([changed(images[row : row + 1], config, SAMPLES[row : row + 1]) for row in range(16)])
    torch.testing.assert_close(together[:16], alone, rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_change_changes_most_images_and_each_epoch_anew(name: str) -> None:
    images = pictures()
    first = changed(images, {name: EVERYTHING[name]})
    second = changed(images, {name: EVERYTHING[name]}, epoch=2)
    for before, after in ((images, first), (first, second)):
        differs = (before - after).abs().amax(dim=(1, 2, 3)) > 1e-3
        assert differs.float().mean() > 0.3


@pytest.mark.parametrize("config", [EVERYTHING, {"rotate": 5}, {"hue": 0.1}, {"noise": 0.1}])
def test_images_stay_in_channels_last_and_in_range(config: dict[str, Any]) -> None:
    images = changed(pictures(), config)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.float32
    assert images.min() >= -1e-6
    assert images.max() <= 1 + 1e-6


def test_flips_mirror_half_of_the_images() -> None:
    images = pictures()
    for name, axis in (("flip", 3), ("vertical_flip", 2)):
        out = changed(images, {name: True})
        same = (out - images).abs().amax(dim=(1, 2, 3)) < 1e-5
        mirrored = (out - images.flip(axis)).abs().amax(dim=(1, 2, 3)) < 1e-5
        assert (same | mirrored).all()
        assert 30 < mirrored.sum() < 70


def test_translation_moves_by_at_most_its_share_and_leaves_black_behind() -> None:
    images = torch.ones(100, 1, 20, 20)
    out = changed(images, {"translate": 0.25})
    rows_lost = (out[:, 0, :, 10] < 0.5).sum(dim=1)
    assert rows_lost.max() == 5
    assert rows_lost.min() == 0


def test_rotation_keeps_the_length_of_an_arrow_in_an_oblong_image() -> None:
    image = torch.zeros(100, 1, 21, 61)
    image[:, 0, 10, 30:39] = 1  # from the centre, 9 pixels to the right
    out = changed(image, {"rotate": 90})
    assert out.sum(dim=(1, 2, 3)).sub(9).abs().max() < 1.5
    ys, xs = torch.meshgrid(torch.arange(21) - 10, torch.arange(61) - 30, indexing="ij")
    mass = out[:, 0] / out[:, 0].sum(dim=(1, 2), keepdim=True)
    angles = torch.atan2((mass * ys).sum(dim=(1, 2)), (mass * xs).sum(dim=(1, 2))).rad2deg()
    assert angles.abs().max() < 92
    assert angles.min() < -60
    assert angles.max() > 60


def test_scaling_changes_the_area_by_the_square() -> None:
    image = torch.zeros(100, 1, 64, 64)
    image[:, 0, 24:40, 24:40] = 1
    scale = changed(image, {"scale": 0.5}).sum(dim=(1, 2, 3)).sqrt() / 16
    assert 0.48 < scale.min() < 0.6
    assert 1.4 < scale.max() < 1.52


def test_cropping_shows_a_part_of_the_image_and_nothing_beyond_it() -> None:
    across = torch.linspace(0.1, 1, 50).expand(100, 1, 50, 50)
    shown = changed(across, {"crop": 0.75})[:, 0, 25]
    width = (shown[:, 45] - shown[:, 5]) / (across[0, 0, 0, 45] - across[0, 0, 0, 5])
    assert 0.5 <= width.min() < 0.65
    assert 0.95 < width.max() <= 1
    assert changed(torch.ones(100, 1, 50, 50), {"crop": 0.75})[:, :, 1:-1, 1:-1].min() > 0.999


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    grey = torch.full((100, 3, 30, 30), 0.5)
    noise = changed(grey, {"noise": 0.1}) - grey
    assert noise.std().item() == pytest.approx(0.1, rel=0.01)
    assert noise.mean().abs() < 0.001
    assert torch.corrcoef(noise[:2].flatten(1))[0, 1].abs() < 0.1


def test_brightness_and_contrast_change_grey_images() -> None:
    grey = pictures()[:, :1]
    for name in ("brightness", "contrast"):
        assert changed(grey, {name: 0.5}).shape == grey.shape
        assert (changed(grey, {name: 0.5}) - grey).abs().max() > 0.1


def test_no_samples_give_no_images() -> None:
    assert changed(pictures()[:0], EVERYTHING, SAMPLES[:0]).shape == (0, 3, 8, 8)


def test_partners_are_a_permutation_without_fixed_points() -> None:
    for count in (2, 3, 64):
        chosen = partners(Keyed(1, 0, SAMPLES[:count]))
        assert sorted(chosen.tolist()) == list(range(count))
        assert (chosen != np.arange(count)).all()
    assert partners(Keyed(1, 0, SAMPLES[:1])).tolist() == [0]


def mixed(config: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Mix white images with black ones; return the images and the shares of the white one."""
    white = torch.ones(100, 1, 30, 20)
    images, share = mix(white, torch.zeros_like(white), Augment.model_validate(config), Keyed(3, 1, SAMPLES))
    return images[:, 0].numpy(), share.numpy()


def test_mixup_blends_by_the_share_of_the_label() -> None:
    images, share = mixed({"mixup": 1.0})
    np.testing.assert_allclose(images, np.broadcast_to(share[:, None, None], images.shape), rtol=1e-6)
    assert share.mean() == pytest.approx(0.5, abs=0.1)
    assert len(np.unique(share)) == 100


def test_a_small_alpha_leaves_most_images_almost_alone() -> None:
    _, share = mixed({"mixup": 0.1})
    assert (np.minimum(share, 1 - share) < 0.05).mean() > 0.6


def test_cutmix_pastes_one_rectangle_as_large_as_the_label_says() -> None:
    images, share = mixed({"cutmix": 1.0})
    assert set(np.unique(images)) == {0.0, 1.0}
    np.testing.assert_allclose(images.mean(axis=(1, 2)), share, rtol=1e-6)
    for image in images:
        rows, columns = (image == 0).any(axis=1), (image == 0).any(axis=0)
        assert (image[np.ix_(rows, columns)] == 0).all()
        assert np.abs(np.diff(rows.astype(int))).sum() <= 2


def test_with_both_on_each_sample_takes_one_of_them() -> None:
    images, share = mixed({"mixup": 1.0, "cutmix": 1.0})
    cut = np.array([set(np.unique(image)) <= {0.0, 1.0} for image in images])
    assert 30 < cut.sum() < 70
    np.testing.assert_allclose(images.mean(axis=(1, 2)), share, rtol=1e-5)
