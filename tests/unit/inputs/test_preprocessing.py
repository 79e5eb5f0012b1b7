import io
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from dyce_runtime.bundle.manifest import INTERPOLATIONS, Preprocessing
from dyce_runtime.errors import DataError, RuntimeInputError
from dyce_runtime.inputs.pictures import Pictures
from dyce_runtime.inputs.preprocessing import listed, preprocess
from tests.real_inputs import imagenet_samples

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


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, io.BytesIO, io.BufferedReader])
def test_bytes_and_open_files_are_pictures(make):
    file = io.BytesIO()
    picture(50, 41).save(file, "PNG")  # the position is at the end now
    whole = file.getvalue()
    one = file if make is io.BytesIO else make(io.BytesIO(whole)) if make is io.BufferedReader else make(whole)
    expected = preprocess(picture(50, 41), RGB)
    assert np.array_equal(preprocess(one, RGB), expected)
    assert np.array_equal(preprocess([one, whole], RGB)[0], expected[0])


def test_an_open_file_that_cannot_be_read_twice_is_prepared_twice(tmp_path):
    picture(50, 41).save(tmp_path / "a.png")
    reader = subprocess.Popen(["cat", tmp_path / "a.png"], stdout=subprocess.PIPE)
    pictures = Pictures(listed(reader.stdout, RGB), {"colour": RGB, "grey": GREY}, "colour")
    assert reader.wait() == 0
    assert np.array_equal(pictures["grey"], preprocess(tmp_path / "a.png", GREY))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("fit", ["stretch", "cover", "contain"])
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_pictures_with_alpha_give_torchvisions_bits_for_models_that_take_alpha(mode, fit, data):
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    image = picture(*data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)), "size"), mode)
    channels = len(mode)
    mean, std = (0.5, 0.4, 0.3, 0.2)[:channels], (0.5, 0.6, 0.7, 0.8)[:channels]
    spec = Preprocessing((32, 32), (32, 32), "bilinear", mean, std, fit)
    made = preprocess(image, spec)
    assert made.shape == (1, channels, 32, 32)
    if fit == "stretch":
        theirs = transforms.Compose(
            [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )
        assert np.array_equal(made[0], theirs(image).numpy())


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@settings(deadline=None, max_examples=25)
@given(channels=st.integers(1, 12), data=st.data())
def test_channels_of_an_array_do_not_touch_each_other(interpolation, channels, data):
    height, width = data.draw(st.tuples(st.integers(8, 60), st.integers(8, 60)), "size")
    pixels = noise(height, width, channels)
    mean = tuple(np.linspace(0.1, 0.9, channels).tolist())
    spec = Preprocessing(24, (24, 20), interpolation, mean, mean[::-1])
    made = preprocess(pixels, spec)
    for channel in range(channels):
        alone = Preprocessing(24, (24, 20), interpolation, mean[channel : channel + 1], spec.std[channel : channel + 1])
        assert np.array_equal(made[0, channel], preprocess(pixels[..., channel], alone)[0, 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_floats_from_0_to_1_are_pictures(channels, dtype):
    pixels = np.random.default_rng(0).random((3, 24, 24, channels)).astype(dtype)
    mean, std = (0.25,) * channels, (0.5,) * channels
    same = Preprocessing((24, 24), (24, 24), "bicubic", mean, std)
    made = preprocess(pixels, same)
    assert np.array_equal(made, (pixels.astype(np.float32).transpose(0, 3, 1, 2) - np.float32(0.25)) / np.float32(0.5))
    smaller = Preprocessing((12, 12), (12, 12), "box", mean, std, "contain")
    halved = pixels.astype(np.float32).reshape(3, 12, 2, 12, 2, channels).mean((2, 4)).transpose(0, 3, 1, 2)
    assert np.allclose(preprocess(pixels, smaller), (halved - 0.25) / 0.5, atol=1e-5)
    if channels in (1, 3):
        bytes_ = np.rint(pixels * 255).astype(np.uint8)
        assert np.abs(preprocess(bytes_, smaller) - preprocess(pixels, smaller)).max() < 0.02


def test_grey_floats_are_colours_and_the_reverse_as_with_bytes():
    plain = Preprocessing((24, 24), (24, 24), "bilinear", (0.0,), (0.5,))
    rgb = Preprocessing((24, 24), (24, 24), "bilinear", (0.0,) * 3, (0.5,) * 3)
    pixels = noise(24, 24, 3)
    assert np.abs(preprocess(pixels / 255, plain) - preprocess(pixels, plain)).max() <= 2 / 255 + 1e-6
    assert np.abs(preprocess(pixels[..., 0] / 255, rgb) - preprocess(pixels[..., 0], rgb)).max() < 1e-6


def test_normalised_floats_are_taken_where_nothing_is_left_to_do():
    taken = Preprocessing((24, 24), (24, 24), "bilinear", (0.0,) * 5, (1.0,) * 5)
    pixels = np.random.default_rng(0).normal(0, 2, (24, 24, 5)).astype(np.float32)
    assert np.array_equal(preprocess(pixels, taken)[0], pixels.transpose(2, 0, 1))
    with pytest.raises(RuntimeInputError, match="from 0 to 255"):
        preprocess(noise(24, 24, 5).astype(np.float32), taken)


def test_arrays_in_files_are_pictures(tmp_path):
    spec = Preprocessing((24, 24), (24, 24), "bilinear", (0.5,) * 5, (0.5,) * 5)
    np.save(tmp_path / "a.npy", noise(30, 30, 5))
    assert np.array_equal(preprocess(tmp_path / "a.npy", spec), preprocess(noise(30, 30, 5), spec))
    np.save(tmp_path / "b.npy", noise(30, 30, 4))
    with pytest.raises(DataError, match=r"b.npy is a uint8 array of shape \(30, 30, 4\): expected 5 channels"):
        preprocess(str(tmp_path / "b.npy"), spec)
    np.save(tmp_path / "c.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"c\.npy: cannot be read as an array"):
        preprocess(tmp_path / "c.npy", spec)


@pytest.mark.parametrize(
    ("mode", "channels", "message"),
    [
        ("RGB", 4, "picture 0: is an image without alpha"),
        ("CMYK", 4, "picture 0: is an image without alpha"),
        ("L", 2, "picture 0: is an image without alpha"),
        ("RGBA", 5, r"picture 0: is an image \(mode RGBA\); expected 5 channels"),
    ],
)
def test_an_image_with_other_channels_is_refused(mode, channels, message):
    spec = Preprocessing(8, (8, 8), "bilinear", (0.5,) * channels, (0.5,) * channels)
    with pytest.raises(DataError, match=message) as caught:
        preprocess(picture(20, 20, mode), spec)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("dtype", "ending"),
    [(np.uint16, "png"), *((d, e) for d in (np.uint16, np.int32, np.float32) for e in ("tif", None))],
)
def test_pixels_of_unknown_white_are_refused(dtype, ending, tmp_path):
    image = Image.fromarray(np.full((20, 20), 1000, dtype))
    if ending is not None:
        image.save(tmp_path / f"deep.{ending}")
    for spec in (RGB, GREY):
        with pytest.raises(DataError, match="over 8 bits") as caught:
            preprocess(image if ending is None else tmp_path / f"deep.{ending}", spec)
        assert "floats from 0 to 1" in caught.value.hint


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message", "hint"),
    [
        (noise(32, 32, 3).astype(np.float32), "from 0 to 255: expected uint8 HWC, or floats from 0 to 1", "session"),
        (noise(32, 32, 3) / 128 - 1, "float64 array.*from -1 to .*: expected uint8 HWC", "straight to the session"),
        (np.full((32, 32, 3), np.nan, np.float32), "from nan to nan: expected", ""),
        (noise(32, 32, 3).astype(np.uint16), "uint16 array.*expected uint8", "divide by the value of white"),
        (noise(32, 32, 3) > 99, "bool array.*expected uint8", "* 255"),
        (noise(32, 32, 3).astype(np.int64), "int64 array.*expected uint8", "convert it to uint8"),
        ([noise(32, 32, 3), noise(32)], r"picture 1 .*shape \(32,\)", ""),
        (noise(2, 2, 2, 2, 3), "expected", ""),
        (noise(2, 32, 32, 4), r"\(32, 32, 4\).*1 or 3 channels", "array[..., :3] drops"),
        (noise(48, 40, 4), r"picture 0 .*\(48, 40, 4\).*1 or 3 channels", "array[..., :3] drops"),
        (noise(48, 40, 2), r"picture 0 .*\(48, 40, 2\).*1 or 3 channels", "array[..., :1] drops"),
        (noise(48, 40, 5), r"picture 0 .*\(48, 40, 5\).*1 or 3 channels", "list"),
        (noise(5, 48, 40), r"picture 0 .*\(5, 48, 40\).*1 or 3 channels", "list"),
        (noise(1, 32, 32, 5), r"\(32, 32, 5\).*1 or 3 channels", ""),
        (noise(2, 3, 32, 32), r"\(3, 32, 32\).*1 or 3 channels", "transpose"),
        (noise(3, 32, 32), r"\(3, 32, 32\).*channels last", "transpose"),
        (noise(0, 32, 3), r"shape \(0, 32, 3\)", ""),
        ([], "no pictures", ""),
        (noise(0, 32, 32, 3), "no pictures", ""),
        ([object()], "picture 0 is a object", ""),
        (None, "picture 0 is a NoneType", ""),
        (3, "picture 0 is a int", ""),
        ({"a": noise(8, 8)}, "picture 0 is a dict", ""),
        ([[0, 1], [2, 3]], "picture 0 is a list", "numpy.asarray"),
        (type("Tensor", (list,), {"__array__": lambda self: np.zeros((3, 8, 8))})(), "picture 0 is a Tensor", "numpy"),
        (io.StringIO("text"), "picture 0 is a StringIO that gives str; expected bytes", "binary"),
        (Image.new("RGB", (0, 5)), "picture 0 has no pixels", ""),
    ],
    ids=lambda value: None if isinstance(value, str) else "images",
)
def test_other_arrays_are_refused_with_what_was_found(images, message, hint):
    with pytest.raises(RuntimeInputError, match=message) as caught:
        preprocess(images, RGB)
    assert hint in caught.value.hint


def test_means_without_as_many_deviations_are_refused():
    spec = Preprocessing(resize=8, crop=(8, 8), interpolation="bilinear", mean=(0.5,) * 4, std=(0.5,) * 3)
    with pytest.raises(RuntimeInputError, match="found 4 means and 3 standard deviations"):
        preprocess(noise(8, 8, 4), spec)


def test_an_unknown_interpolation_is_refused():
    spec = Preprocessing(resize=8, crop=(8, 8), interpolation="random", mean=(0.5,), std=(0.5,))
    with pytest.raises(RuntimeInputError, match="'random', expected one of nearest"):
        preprocess(noise(8, 8), spec)


@pytest.mark.parametrize("shape", [(48, 40, 2), (48, 40, 3), (48, 40, 4), (48, 40, 5), (48, 40, 7)])
def test_one_array_with_channels_is_never_taken_for_grey_pictures(shape):
    if shape[2] == 3:
        assert len(preprocess(noise(*shape), GREY)) == 1
        return
    with pytest.raises(RuntimeInputError, match=re.escape(f"picture 0 is a uint8 array of shape {shape}")):
        preprocess(noise(*shape), GREY)


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
        "import sys, dyce_runtime.inputs.preprocessing, dyce_runtime.inputs.datasets;"
        "print([name for name in ('PIL', 'sklearn', 'torch', 'timm', 'onnx') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
