"""StyleGAN2 in plain numpy, from the papers' equations, slowly; autograd differentiates it.

Everything linear along an axis is a matrix along that axis. Each example has its own modulated
kernel. Resampling is what its name says: insert zeros, pad, filter, thin out, in that order.
Parameters come in the trees that the Flax modules have, as float64.

Letters: B batch, H height, W width, C channels, K kernel size, P pixels read by a kernel.
"""

import autograd.numpy as anp
import numpy as np

LOW_PASS = (1.0, 3.0, 3.0, 1.0)

# ---- linear maps along an axis ----------------------------------------------------------------


def along(images, matrix, axis):
    """A matrix applied along height (axis 1) or width (axis 2)."""
    if axis == 2:
        return anp.matmul(matrix, images)
    batch, height, width, channels = images.shape
    flat = anp.reshape(images, (batch, height, width * channels))
    return anp.reshape(anp.matmul(matrix, flat), (batch, len(matrix), width, channels))


def zeros_inserted(size, up):
    """Each pixel, and up - 1 zeros behind it."""
    matrix = np.zeros((size * up, size))
    for pixel in range(size):
        matrix[pixel * up, pixel] = 1
    return matrix


def padded(size, before, after, circular):
    """More pixels on both sides, or fewer where negative."""
    matrix = np.zeros((before + size + after, size))
    for row in range(len(matrix)):
        pixel = row - before
        if circular or 0 <= pixel < size:
            matrix[row, pixel % size] = 1
    return matrix


def filtered(size, taps):
    """The convolution of signal processing, where it needs no border: y[n] = sum h[k] x[n - k]."""
    last = len(taps) - 1
    matrix = np.zeros((size - last, size))
    for row in range(len(matrix)):
        for k, tap in enumerate(taps):
            matrix[row, row + last - k] = tap
    return matrix


def thinned(size, down):
    """Every so many pixels, from the first."""
    return np.eye(size)[::down]


def upfirdn(images, taps, *, up=1, down=1, before=0, after=0, gain=1.0, circular=False):
    """The same four steps along height and along width."""
    taps = np.asarray(taps, np.float64)
    for axis in (1, 2):
        matrix = np.eye(images.shape[axis])
        matrix = zeros_inserted(len(matrix), up) @ matrix
        matrix = padded(len(matrix), before, after, circular) @ matrix
        matrix = filtered(len(matrix), taps) @ matrix
        matrix = thinned(len(matrix), down) @ matrix
        images = along(images, np.sqrt(gain) * matrix, axis)
    return images


def unit(taps):
    return np.asarray(taps, np.float64) / np.sum(taps)


def upsample(images, taps=LOW_PASS, circular=False):
    before, after = (len(taps) + 1) // 2, (len(taps) - 2) // 2
    sides = {"before": before, "after": after}
    return upfirdn(images, unit(taps), up=2, gain=4, circular=circular, **sides)


def downsample(images, taps=LOW_PASS, circular=False):
    before, after = (len(taps) - 1) // 2, (len(taps) - 2) // 2
    sides = {"before": before, "after": after}
    return upfirdn(images, unit(taps), down=2, circular=circular, **sides)


# ---- convolutions -----------------------------------------------------------------------------


def patches(images, size):
    """What a kernel reads at each of its places, [B, H2, W2, K K C]."""
    batch, channels = images.shape[0], images.shape[3]
    for axis in (1, 2):
        pixels = np.eye(images.shape[axis])
        places = len(pixels) - size + 1
        images = along(images, np.concatenate([pixels[n : n + size] for n in range(places)]), axis)
    height, width = images.shape[1] // size, images.shape[2] // size
    images = anp.reshape(images, (batch, height, size, width, size, channels))
    images = anp.transpose(images, (0, 1, 3, 2, 4, 5))
    return anp.reshape(images, (batch, height, width, size * size * channels))


def convolution(images, kernel):
    """Neural networks' convolution without border; `kernel` [K, K, C, F], or one an example."""
    size, features = kernel.shape[-3], kernel.shape[-1]
    read = patches(images, kernel.shape[-4])
    batch, height, width, pixels = read.shape
    assert pixels == size * size * images.shape[3]
    flat = anp.reshape(read, (batch, height * width, pixels))
    matrix = anp.reshape(kernel, (*kernel.shape[:-4], pixels, features))
    return anp.reshape(anp.matmul(flat, matrix), (batch, height, width, features))


def resampled_convolution(images, kernel, *, up=1, down=1, taps=LOW_PASS, circular=False):
    """Grow and filter, convolve; or filter, convolve, thin out. All borders are put on first.

    A convolution that grows takes its kernel the other way round, as StyleGAN2's networks do.
    """
    half = kernel.shape[-3] // 2
    if up == 2:
        kernel = kernel[..., ::-1, ::-1, :, :]
        before, after = (len(taps) + 1) // 2 + half, (len(taps) - 2) // 2 + half
        sides = {"before": before, "after": after}
        images = upfirdn(images, unit(taps), up=2, gain=4, circular=circular, **sides)
        return convolution(images, kernel)
    if down == 2:
        before, after = (len(taps) - 1) // 2 + half, (len(taps) - 2) // 2 + half
        images = upfirdn(images, unit(taps), before=before, after=after, circular=circular)
        images = convolution(images, kernel)
        for axis in (1, 2):
            images = along(images, thinned(images.shape[axis], 2), axis)
        return images
    return convolution(upfirdn(images, [1.0], before=half, after=half, circular=circular), kernel)


def modulated_convolution(images, kernel, styles, *, demodulate=True, **resampling):
    """Equations 1 to 3 of "Analyzing and improving the image quality of StyleGAN"."""
    kernels = kernel[None] * styles[:, None, None, :, None]
    if demodulate:
        squares = anp.sum(kernels**2, axis=(1, 2, 3), keepdims=True)
        kernels = kernels / anp.sqrt(squares + 1e-8)
    return resampled_convolution(images, kernels, **resampling)


# ---- other layers -----------------------------------------------------------------------------


def leaky_relu(inputs):
    return np.sqrt(2) * anp.where(inputs > 0, inputs, 0.2 * inputs)


def dense(params, inputs, multiplier=1.0):
    kernel = params["kernel"] * multiplier / np.sqrt(params["kernel"].shape[0])
    return anp.dot(inputs, kernel) + multiplier * params["bias"]


def equalized(params, images, *, activate=True, **resampling):
    """Convolution with equalised learning rate, bias if it has one, leaky ReLU."""
    fan_in = np.prod(params["kernel"].shape[:3])
    outputs = resampled_convolution(images, params["kernel"] / np.sqrt(fan_in), **resampling)
    if "bias" in params:
        outputs = outputs + params["bias"]
    return leaky_relu(outputs) if activate else outputs


def unit_second_moment(inputs):
    return inputs / anp.sqrt(anp.mean(inputs**2, axis=1, keepdims=True) + 1e-8)


def minibatch_standard_deviation(images, group, features=1):
    """Groups of examples that follow one another, one after the other."""
    batch, height, width, channels = images.shape
    part = channels // features
    appended = []
    for start in range(0, batch, group):
        members = images[start : start + group]
        variance = anp.mean((members - anp.mean(members, axis=0)) ** 2, axis=0)
        deviation = anp.sqrt(variance + 1e-8)
        means = [anp.mean(deviation[..., n * part : (n + 1) * part]) for n in range(features)]
        row = anp.reshape(anp.stack(means), (1, 1, 1, features))
        appended += [row * np.ones((1, height, width, 1))] * group
    return anp.concatenate([images, anp.concatenate(appended)], axis=3)


def mapping(params, latents, labels, classes):
    """Eight dense layers (or fewer) whose learning rate is a hundredth of the others'."""
    parts = [] if latents is None else [unit_second_moment(latents)]
    if classes:
        parts.append(unit_second_moment(dense(params["embedding"], np.eye(classes)[labels])))
    hidden = anp.concatenate(parts, axis=1)
    for number in range(sum(name.startswith("layers_") for name in params)):
        hidden = leaky_relu(dense(params[f"layers_{number}"], hidden, 0.01))
    return hidden


def sizes_of(image_shape):
    """From the image's own size by halves, until one more would make a side shorter than four."""
    sizes = [tuple(image_shape[:2])]
    while min(sizes[-1]) >= 8:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


# ---- networks ---------------------------------------------------------------------------------


def synthesis(
    params, styles, noises, image_shape, *, architecture="skip", taps=LOW_PASS, circular=False
):
    """Images of styles [B, L, D]; `noises` one for each convolution, or none."""
    options = {"taps": taps, "circular": circular}
    used = 0

    def styled(name, hidden, up=1):
        nonlocal used
        layer = params[name]
        style = dense(layer["affine"], styles[:, used])
        hidden = modulated_convolution(hidden, layer["kernel"], style, up=up, **options)
        if noises is not None:
            hidden = hidden + layer["noise_strength"] * noises[used]
        used += 1
        return leaky_relu(hidden + layer["bias"])

    def to_image(name, hidden):
        layer = params[name]
        style = dense(layer["affine"], styles[:, used]) / np.sqrt(hidden.shape[3])
        return (
            modulated_convolution(hidden, layer["kernel"], style, demodulate=False) + layer["bias"]
        )

    image = None
    sizes = sizes_of(image_shape)[::-1]
    hidden = params["constant"][None] * np.ones((styles.shape[0], 1, 1, 1))
    for height, width in sizes:
        name = f"{height}x{width}"
        if (height, width) == sizes[0]:
            hidden = styled(f"{name}_conv1", hidden)
        else:
            before = hidden
            hidden = styled(f"{name}_conv1", styled(f"{name}_conv0", hidden, up=2))
            if architecture == "residual":
                shortcut = params[f"{name}_shortcut"]
                shortcut = equalized(shortcut, before, activate=False, up=2, **options)
                hidden = (hidden + shortcut) / np.sqrt(2)
        if architecture == "skip":
            new = to_image(f"{name}_image", hidden)
            image = new if image is None else upsample(image, **options) + new
    return to_image(f"{name}_image", hidden) if image is None else image


def generator(params, latents, labels, noises, image_shape, classes=0, **options):
    """Images of latents; every layer has the same style."""
    style = mapping(params["mapping_network"], latents, labels, classes)
    count = 2 * len(sizes_of(image_shape))
    styles = style[:, None] * np.ones((1, count, 1))
    return synthesis(params["synthesis_network"], styles, noises, image_shape, **options)


def discriminator(
    params,
    images,
    labels,
    classes=0,
    *,
    architecture="residual",
    group=4,
    taps=LOW_PASS,
    circular=False,
):
    """Logits [B]."""
    options = {"taps": taps, "circular": circular}
    hidden = None
    *larger, smallest = sizes_of(images.shape[1:3])
    for height, width in larger:
        name = f"{height}x{width}"
        if hidden is None:
            hidden = equalized(params[f"{name}_image"], images)
        elif architecture == "skip":
            hidden = hidden + equalized(params[f"{name}_image"], images)
        before = hidden
        hidden = equalized(params[f"{name}_conv0"], hidden, **options)
        hidden = equalized(params[f"{name}_conv1"], hidden, down=2, **options)
        if architecture == "residual":
            shortcut = params[f"{name}_shortcut"]
            shortcut = equalized(shortcut, before, activate=False, down=2, **options)
            hidden = (hidden + shortcut) / np.sqrt(2)
        if architecture == "skip":
            images = downsample(images, **options)
    name = f"{smallest[0]}x{smallest[1]}"
    if architecture == "skip":
        hidden = hidden + equalized(params[f"{name}_image"], images)
    hidden = minibatch_standard_deviation(hidden, group)
    hidden = equalized(params[f"{name}_conv"], hidden, **options)
    hidden = leaky_relu(dense(params["dense"], anp.reshape(hidden, (len(images), -1))))
    outputs = dense(params["output"], hidden)
    if not classes:
        return outputs[:, 0]
    embedding = mapping(params["mapping"], None, labels, classes)
    return anp.sum(outputs * embedding, axis=1) / np.sqrt(outputs.shape[1])
