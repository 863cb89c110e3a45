"""Small clips for tests, in which each frame can be known again."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
from PIL import Image


def gray_frames(values, side=16, channels=3):
    """Frames [T, side, side, channels], each of one gray value."""
    levels = np.asarray(values, np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (len(levels), side, side, channels)).copy()


def write_video(path, frames, *, codec="ffv1", rate=25, pixels="bgr0", times=None, options=None):
    """Writes frames [T, H, W, C] of 1, 3 or 4 channels; ffv1 and png keep each value.

    Args:
        path: Where to; its ending chooses the container.
        frames: The frames.
        codec: Name of the encoder.
        rate: Frames per second.
        pixels: The encoder's pixel format.
        times: Milliseconds at which frames are shown, where not at a steady rate.
        options: Options of the container.
    """
    form = {1: "gray", 3: "rgb24", 4: "rgba"}[frames.shape[-1]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = frame[..., 0] if form == "gray" else frame
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), form)
            if times is not None:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def animation(frames, form="GIF", milliseconds=40):
    """The bytes of an animated picture; one duration, or one a frame."""
    pictures = [
        Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames
    ]
    options = {"lossless": True} if form == "WEBP" else {"disposal": 2}
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        form,
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        **options,
    )
    return buffer.getvalue()


def write_frames(folder, frames, name="{:03}.png"):
    """Writes each frame as a picture, numbered from 0 on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        picture = frame[..., 0] if frame.shape[-1] == 1 else frame
        Image.fromarray(picture).save(folder / name.format(number))
    return folder


def turn_clockwise(path):
    """Marks an mp4 or mov file to be shown turned by 90 degrees clockwise, as telephones do."""
    data = path.read_bytes()
    # The matrix of the track's header: 40 bytes of other fields behind the name of the box.
    place = data.index(b"tkhd") + 44
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + matrix + data[place + len(matrix) :])
    return path


def known_values(frames):
    """The gray value of each frame [..., H, W, C], by its middle."""
    height, width = frames.shape[-3:-1]
    return frames[..., height // 2, width // 2, 0].astype(int).tolist()
