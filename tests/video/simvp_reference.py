"""SimVP in plain float64 numpy, from the papers' equations, by loops over frames and taps.

Letters: B batch, T time, H height, W width, C channels.
"""

import numpy as np
from scipy.special import erf


def convolve(images, kernel, bias=0.0, stride=1, dilation=1, groups=1):
    """`out[b, y, x, f] = sum_ijc in[b, s y + d i - p, s x + d j - p, c] k[i, j, c, f]`."""
    size, inner, features = kernel.shape[0], kernel.shape[2], kernel.shape[3]
    batch, height, width, _ = images.shape
    border = dilation * (size // 2)
    outputs = np.zeros((batch, -(-height // stride), -(-width // stride), features))
    for y in range(outputs.shape[1]):
        for x in range(outputs.shape[2]):
            for i in range(size):
                for j in range(size):
                    row, column = stride * y + dilation * i, stride * x + dilation * j
                    row, column = row - border, column - border
                    if not (0 <= row < height and 0 <= column < width):
                        continue
                    for group in range(groups):
                        ins = slice(group * inner, (group + 1) * inner)
                        outs = slice(group * features // groups, (group + 1) * features // groups)
                        pixel = images[:, row, column, ins]
                        outputs[:, y, x, outs] += pixel @ kernel[i, j, :, outs]
    return outputs + bias


def depthwise(images, kernel, bias=0.0, dilation=1):
    return convolve(images, kernel[:, :, None], bias, 1, dilation, images.shape[-1])


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def group_norm(images, layer, groups):
    outputs = np.empty_like(images)
    width = images.shape[-1] // groups
    for number, image in enumerate(images):
        for group in range(groups):
            part = image[..., group * width : (group + 1) * width]
            outputs[number, ..., group * width : (group + 1) * width] = (
                part - part.mean()
            ) / np.sqrt(part.var() + 1e-5)
    return outputs * layer["scale"] + layer["bias"]


def batch_norm(images, layer, averages, train):
    mean = images.mean((0, 1, 2)) if train else averages["mean"]
    variance = images.var((0, 1, 2)) if train else averages["variance"]
    return (images - mean) / np.sqrt(variance + 1e-5) * layer["scale"] + layer["bias"]


def shuffle(images):
    batch, height, width, channels = images.shape
    outputs = np.empty((batch, 2 * height, 2 * width, channels // 4))
    for i in range(2):
        for j in range(2):
            quarter = 2 * i + j
            part = images[..., quarter * channels // 4 : (quarter + 1) * channels // 4]
            outputs[:, i::2, j::2] = part
    return outputs


def spatial(images, layer, stride=1, up=False):
    conv = layer["conv"]
    hidden = convolve(images, conv["kernel"], conv["bias"], stride)
    hidden = group_norm(shuffle(hidden) if up else hidden, layer["norm"], 2)
    return hidden * sigmoid(hidden)


def gated_block(x, params, statistics, train):
    u = batch_norm(x, params["attention_norm"], statistics["attention_norm"], train)
    near, far = params["attention_near"], params["attention_far"]
    hidden = gelu(dense(u, params["attention_in"]))
    hidden = depthwise(hidden, near["kernel"], near["bias"])
    hidden = dense(depthwise(hidden, far["kernel"], far["bias"], 3), params["attention_gate"])
    f, g = hidden[..., : x.shape[-1]], hidden[..., x.shape[-1] :]
    x = x + params["attention_scale"] * (dense(sigmoid(g) * f, params["attention_out"]) + u)
    u = batch_norm(x, params["mlp_norm"], statistics["mlp_norm"], train)
    conv = params["mlp_conv"]
    hidden = gelu(depthwise(dense(u, params["mlp_in"]), conv["kernel"], conv["bias"]))
    return x + params["mlp_scale"] * dense(hidden, params["mlp_out"])


def gated_translator(x, params, statistics, layers, train):
    for layer in range(layers):
        name = f"block_{layer}"
        x = gated_block(x, params[name], statistics[name], train)
        if f"width_{layer}" in params:
            x = dense(x, params[f"width_{layer}"])
    return x


def inception_block(x, params, sizes):
    x = dense(x, params["reduce"])
    total = 0.0
    for size in sizes:
        branch = convolve(x, params[f"kernel_{size}"], params[f"bias_{size}"], groups=8)
        branch = group_norm(branch, params[f"norm_{size}"], 8)
        total = total + np.where(branch > 0, branch, 0.2 * branch)
    return total


def inception_translator(x, params, layers, sizes):
    down = []
    for layer in range(layers):
        x = inception_block(x, params[f"down_{layer}"], sizes)
        down.append(x)
    x = inception_block(x, params["up_0"], sizes)
    for layer in range(1, layers):
        x = np.concatenate([x, down[layers - 1 - layer]], -1)
        x = inception_block(x, params[f"up_{layer}"], sizes)
    return x


def simvp(variables, clips, mask, model, train):
    """What `model` (its fields only) makes of clips [B, T, H, W, C]."""
    params = variables["params"]
    layers, times = model.spatial_layers, range(len(model.known))
    inputs = [time for time in times if model.known[time]]
    outputs = [time for time in times if model.partial or not model.known[time]]
    first, last = [], []
    for time in inputs:
        frame = clips[:, time]
        if mask is not None:
            frame = np.concatenate([frame * mask[:, time], mask[:, time]], -1)
        for layer in range(layers):
            frame = spatial(frame, params[f"encoder_{layer}"], stride=1 + layer % 2)
            if layer == 0:
                first.append(frame)
        last.append(frame)
    hidden = np.concatenate(last, -1)
    translator = params["translator"]
    if model.translator == "gsta":
        statistics = variables["statistics"]["translator"]
        hidden = gated_translator(hidden, translator, statistics, model.temporal_layers, train)
    else:
        sizes = model.inception_kernel_sizes
        hidden = inception_translator(hidden, translator, model.temporal_layers, sizes)
    result = np.array(clips)
    for place, (time, frame) in enumerate(
        zip(outputs, np.split(hidden, len(outputs), -1), strict=True)
    ):
        for layer in range(layers - 1, 0, -1):
            frame = spatial(frame, params[f"decoder_{layer}"], up=layer % 2 == 1)
        skip = first[int(np.floor(place * len(inputs) / len(outputs)))]
        frame = spatial(frame + skip, params["decoder_0"])
        result[:, time] = dense(frame, params["readout"])
    return result
