import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from dyce_runtime.errors import DataError, RuntimeInputError
from dyce_runtime.manifest import Preprocessing
from dyce_runtime.preprocessing import preprocess
from tests.real_inputs import imagenet_samples

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FITS = {"center": "cover", "squash": "stretch", "border": "contain"}  # by timm's crop_mode
RGB = Preprocessing(resize=36, crop=(32, 32), interpolation="bicubic", mean=MEAN, std=STD)
GREY = Preprocessing(resize=28, crop=(28, 28), interpolation="bilinear", mean=(0.2860,), std=(0.3530,))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(width, height, mode="RGB", seed=0):
    """Noise in any of Pillow's modes, with a palette or transparency where the mode has them."""
    return Image.fromarray(noise(height, width, 4, seed=seed)).convert("RGB" if mode == "P" else "RGBA").convert(mode)


# --- the same bits as timm -------------------------------------------------------------------------------------------


def by_timm(image, spec, crop_pct, crop_mode):
    pytest.importorskip("torch", reason="torch is not installed")
    data = pytest.importorskip("timm.data", reason="timm is not installed")
    transform = data.create_transform(
        input_size=(len(spec.mean), *spec.crop),
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    return transform(image.convert("RGB" if len(spec.mean) == 3 else "L")).numpy()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_pictures_of_any_size_and_mode_give_timms_bits(channels, interpolation, data):
    edge = st.integers(5, 65)
    crop = data.draw(edge.map(lambda n: (n, n)) | st.tuples(edge, edge), "crop")
    # Below 1 the crop cuts, above 1 it pads.
    crop_pct = data.draw(st.sampled_from([0.875, 0.9, 0.95, 1.0, 1.15]), "crop_pct")
    crop_mode = data.draw(st.sampled_from(sorted(FITS)), "crop_mode")
    width, height = data.draw(st.tuples(st.integers(1, 150), st.integers(1, 150)), "picture")
    image = picture(width, height, data.draw(st.sampled_from(["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"]), "mode"))
    scaled = int(crop[0] / crop_pct), int(crop[1] / crop_pct)
    one_edge = crop_mode == "center" and scaled[0] == scaled[1]
    fit = "stretch" if one_edge else FITS[crop_mode]
    # timm cannot resize to nothing; we keep one pixel.
    assume(fit != "contain" or min(width, height) / max(width / scaled[1], height / scaled[0]) > 0.5)
    spec = Preprocessing(scaled[0] if one_edge else scaled, crop, interpolation, MEAN[:channels], STD[:channels], fit)
    ours = preprocess(image, spec)
    assert ours.shape == (1, channels, *crop)
    assert ours.dtype == np.float32
    assert np.array_equal(ours[0], by_timm(image, spec, crop_pct, crop_mode))


@pytest.mark.parametrize("fit", ["stretch", "cover", "contain"])
def test_a_picture_that_is_hardly_a_line_keeps_a_pixel(fit):
    spec = Preprocessing((9, 9), (9, 9), "bilinear", MEAN, (1.0,) * 3, fit)
    batch = preprocess(np.full((1, 400, 3), 255, np.uint8), spec)
    white = (batch[0] > 0.4).all(0)
    assert white.sum() == (9 if fit == "contain" else 81)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_imagenet_pictures_give_timms_bits(interpolation):
    samples = imagenet_samples()
    if samples is None:
        pytest.skip("no ImageNet pictures: pip install --no-deps foolbox, or set DYCE_IMAGENET_SAMPLES")
    spec = Preprocessing(resize=256, crop=(224, 224), interpolation=interpolation, mean=MEAN, std=STD)
    ours = preprocess([path for path, _ in samples], spec)
    for batch, (path, _) in zip(ours, samples, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(batch, by_timm(image, spec, 0.875, None)), path.name


def test_a_pair_of_lengths_is_height_then_width():
    spec = Preprocessing(resize=(20, 40), crop=(20, 40), interpolation="box", mean=(0.0,), std=(1.0,))
    pixels = noise(40, 80).astype(np.float32)
    means = pixels.reshape(20, 2, 40, 2).mean((1, 3))  # halving with a box is the mean of 2 x 2 pixels
    assert np.allclose(preprocess(pixels.astype(np.uint8), spec)[0, 0] * 255, means, atol=1)


def test_a_cameras_orientation_is_ignored_as_timm_ignores_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    image = picture(60, 40)
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(preprocess(tmp_path / "turned.png", RGB), preprocess(image, RGB))


# --- what counts as pictures -----------------------------------------------------------------------------------------


def test_paths_images_and_arrays_of_one_picture_are_the_same(tmp_path):
    pixels = noise(50, 41, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    batch = preprocess([path, str(path), Image.fromarray(pixels), pixels], RGB)
    assert batch.shape == (4, 3, 32, 32)
    assert all(np.array_equal(batch[0], other) for other in batch[1:])
    for alone in (path, str(path), Image.fromarray(pixels), pixels):
        assert np.array_equal(preprocess(alone, RGB), batch[:1])


def test_grey_pictures_may_have_a_channel_axis_or_not():
    pixels = noise(6, 28, 28)
    one_by_one = preprocess(list(pixels), GREY)
    assert one_by_one.shape == (6, 1, 28, 28)
    assert np.array_equal(preprocess(pixels, GREY), one_by_one)
    assert np.array_equal(preprocess(pixels[..., None], GREY), one_by_one)
    assert np.array_equal(preprocess(pixels[0], GREY), one_by_one[:1])
    assert np.array_equal(preprocess(pixels[0][..., None], GREY), one_by_one[:1])


def test_a_grey_picture_for_an_rgb_model_has_three_equal_channels():
    plain = Preprocessing(resize=32, crop=(32, 32), interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = preprocess(noise(32, 32), plain)
    assert np.array_equal(batch[0, 0], noise(32, 32) / np.float32(255))
    assert np.array_equal(batch[0, 0], batch[0, 1])
    assert np.array_equal(batch[0, 0], batch[0, 2])


def test_inputs_are_not_changed():
    pixels = noise(28, 28)
    before = pixels.copy()
    preprocess(pixels, GREY)
    assert np.array_equal(pixels, before)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message", "hint"),
    [
        (noise(32, 32, 3).astype(np.float32), "float32 array.*expected uint8 HWC", "straight to the session"),
        (noise(32, 32, 3).astype(np.int64), "int64 array.*expected uint8", "convert it to uint8"),
        ([noise(32, 32, 3), noise(32)], r"picture 1 .*shape \(32,\)", ""),
        (noise(2, 2, 2, 2, 3), "expected", ""),
        (noise(2, 32, 32, 4), r"\(32, 32, 4\).*1 or 3 channels", "alpha"),
        (noise(2, 3, 32, 32), r"\(3, 32, 32\).*1 or 3 channels", "transpose"),
        (noise(3, 32, 32), r"\(3, 32, 32\).*channels last", "transpose"),
        (noise(0, 32, 3), r"shape \(0, 32, 3\)", ""),
        ([], "no pictures", ""),
        (noise(0, 32, 32, 3), "no pictures", ""),
        ([object()], "picture 0 is a object", ""),
        (Image.new("RGB", (0, 5)), "picture 0 has no pixels", ""),
    ],
    ids=lambda value: None if isinstance(value, str) else "images",
)
def test_other_arrays_are_refused_with_what_was_found(images, message, hint):
    with pytest.raises(RuntimeInputError, match=message) as caught:
        preprocess(images, RGB)
    assert hint in caught.value.hint


def test_a_model_with_other_channels_is_told_to_use_the_session_directly():
    spec = Preprocessing(resize=8, crop=(8, 8), interpolation="bilinear", mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(RuntimeInputError, match="found 4 means") as caught:
        preprocess(noise(8, 8), spec)
    assert "session" in caught.value.hint


def test_an_unknown_interpolation_is_refused():
    spec = Preprocessing(resize=8, crop=(8, 8), interpolation="random", mean=(0.5,), std=(0.5,))
    with pytest.raises(RuntimeInputError, match="'random', expected one of nearest"):
        preprocess(noise(8, 8), spec)


@pytest.mark.parametrize("damage", ["missing", "text", "empty", "truncated"])
def test_an_unreadable_file_is_named(tmp_path, damage):
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    picture(64, 64).save(good)
    if damage != "missing":
        bad.write_bytes({"text": b"not a picture", "empty": b"", "truncated": good.read_bytes()[:900]}[damage])
    expected = "no such file" if damage == "missing" else "cannot be read as a picture"
    with pytest.raises(DataError, match=rf"bad\.jpg: {expected}"):
        preprocess([good, bad], RGB)


def test_pillow_is_imported_only_when_pictures_are_read():
    code = (
        "import sys, dyce_runtime.preprocessing, dyce_runtime.datasets;"
        "print([name for name in ('PIL', 'sklearn', 'torch', 'timm', 'onnx') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
