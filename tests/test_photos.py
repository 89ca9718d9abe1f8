"""Photographs: what is read, kept and written, against Pillow's and skimage's own reading."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage.io import imread

from rerg.config import InputError
from rerg.photos import Photo, read_kernel, read_mask, read_photo, write_photo

RNG = np.random.default_rng(0)


def pixels(*shape: int, bits: int = 8) -> np.ndarray:
    return RNG.integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_depth_channels_and_alpha_are_kept(tmp_path, suffix, bits, channels):
    array = pixels(7, 10, channels, bits=bits)
    colours = channels - (channels in (2, 4))
    x = torch.from_numpy(array).movedim(-1, 0).float() / (2**bits - 1)
    alpha = x[colours:] if channels > colours else None
    if (suffix, bits, channels) == (".tif", 16, 2):  # Pillow could not read it again
        with pytest.raises(InputError, match=r"a\.tif: grey of 16 bits with transparency"):
            write_photo(tmp_path / f"a{suffix}", Photo(x[:colours], alpha, bits))
        return
    write_photo(tmp_path / f"a{suffix}", Photo(x[:colours], alpha, bits))
    photo = read_photo(tmp_path / f"a{suffix}")
    torch.testing.assert_close(photo.x, x[:colours], atol=1e-7, rtol=0)
    assert photo.bits == bits and (photo.alpha is None) == (alpha is None)
    if alpha is not None:
        torch.testing.assert_close(photo.alpha, alpha, atol=1e-7, rtol=0)
    if bits == 8 or suffix == ".tif":  # a second reader
        read = imread(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(np.atleast_3d(read), array)
    assert [file.name for file in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_exif_turns_as_pillow_does(tmp_path, orientation, bits):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels(5, 8, bits=bits))
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    x = read_photo(tmp_path / "a.png").x[0].numpy() * (2**bits - 1)
    np.testing.assert_array_equal(x.round(), upright)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "LA", "RGBA", "YCbCr"])
def test_any_mode_becomes_grey_or_colour(tmp_path, mode):
    image = Image.fromarray(pixels(6, 9, 3)).convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    photo = read_photo(path)
    assert len(photo.x) == (1 if mode in ("1", "LA") else 3)
    assert (photo.alpha is not None) == mode.endswith("A")


def test_colours_keep_their_profile(tmp_path):
    for bits in (8, 16):
        for name in ("a.png", "a.tif"):
            photo = Photo(torch.rand(3, 4, 4), None, bits, b"a profile")
            write_photo(tmp_path / name, photo)
            assert read_photo(tmp_path / name).profile == b"a profile"


def test_alpha_is_resized_with_the_picture():
    photo = Photo(torch.rand(3, 4, 6), torch.ones(1, 4, 6)).restored(torch.rand(3, 8, 12))
    torch.testing.assert_close(photo.alpha, torch.ones(1, 8, 12))


def test_faults_are_a_line_and_nothing_is_left(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(pixels(9, 9, 3)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    frames = [Image.fromarray(pixels(4, 4)) for _ in range(2)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(RNG.random((4, 4), np.float32)).save(tmp_path / "float.tif")
    head = b"IHDR" + struct.pack(">IIBBBBB", 60000, 30000, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(
        whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:]
    )
    for name, fault in [
        ("none.png", "no such file"),
        ("text.png", "expected a picture"),
        ("cut.png", "cannot be read: "),
        ("two.gif", "expected one picture, found 2"),
        ("float.tif", "expected 8 or 16 bits a channel, found mode F"),
        ("huge.png", "expected at most 1073741824 pixels, found 30000 x 60000"),
    ]:
        with pytest.raises(InputError) as error:
            read_photo(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: {fault}")
        assert "\n" not in str(error.value)
    photo = Photo(torch.rand(3, 4, 4), torch.ones(1, 4, 4))
    for name, fault in [
        ("a.jpg", "holds no transparency"),
        ("a.xyz", "expected a name that ends in"),
        ("text.png/a.png", "cannot be written: "),
    ]:
        with pytest.raises(InputError, match=fault):
            write_photo(tmp_path / name, photo)
    with pytest.raises(InputError, match=r"wide\.webp: cannot be written: "):
        write_photo(tmp_path / "wide.webp", Photo(torch.zeros(1, 1, 16400)))
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]
    write_photo(tmp_path / "new" / "a.png", photo)
    assert (tmp_path / "new" / "a.png").exists()


def test_kernels_and_masks(tmp_path):
    h = RNG.random((5, 3))
    np.save(tmp_path / "k.npy", h)
    np.savetxt(tmp_path / "k.txt", h)
    grey = (255 * h).round().astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "k.png")
    for name in ("k.npy", "k.txt"):
        np.testing.assert_allclose(read_kernel(tmp_path / name), h / h.sum(), rtol=1e-12)
    np.testing.assert_allclose(read_kernel(tmp_path / "k.png"), grey / grey.sum(), rtol=1e-6)
    np.testing.assert_array_equal(read_mask(tmp_path / "k.png"), grey > 127)
    np.save(tmp_path / "k.npy", -h)
    np.save(tmp_path / "cancelled.npy", np.array([[1e9, -1e9, 1.0]]))
    np.save(tmp_path / "complex.npy", 1j * h)
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, h=h)
    (tmp_path / "damaged.npy").write_bytes((tmp_path / "archive.npy").read_bytes()[:40])
    (tmp_path / "bad.txt").write_text("1 2\nx\n")
    Image.fromarray(0 * grey).save(tmp_path / "black.png")
    for read, name, fault in [
        (read_kernel, "k.npy", "expected a kernel of finite values with a positive sum"),
        (read_kernel, "cancelled.npy", "expected a kernel of finite values with a positive sum"),
        (read_kernel, "complex.npy", "expected a matrix of real numbers, found complex128"),
        (read_kernel, "archive.npy", "expected a kernel"),
        (read_kernel, "damaged.npy", "expected a kernel"),
        (read_kernel, "bad.txt", "expected a kernel"),
        (read_kernel, "none.npy", "no such file"),
        (read_mask, "black.png", "expected white where pixels are known"),
    ]:
        with pytest.raises(InputError, match=fault):
            read(tmp_path / name)
