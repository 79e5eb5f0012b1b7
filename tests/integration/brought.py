"""Models as people bring them: of torchvision and transformers with random weights, written by hand, and wrapped.

Each function takes nothing and returns a module that reacts to its input. They are factories for ``--model`` too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision.models as vision
import transformers as hf
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torchvision.models import detection, segmentation
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock
from torchvision.ops import DeformConv2d

from dyce_export.verification.probes import condition, synthetic_images

EDGE = 32
CLASSES = 5


def awake(make: Callable[[], nn.Module], size: tuple[int, int, int] = (3, EDGE, EDGE)) -> nn.Module:
    """A module with weights that are the same every time and that its answers depend on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().eval()
    condition(module, synthetic_images(16, size, seed=1))
    return module


# --- torchvision -----------------------------------------------------------------------------------------------------


def resnet() -> nn.Module:
    """torchvision's, with one block in each stage."""
    return awake(lambda: vision.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES), (3, 64, 64))


def mobilenet() -> nn.Module:
    """torchvision's, with fewer blocks: with and without squeezing, a shortcut, and either activation."""
    settings = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(16, 3, 72, 24, False, "RE", 2, 1, 1.0),
        InvertedResidualConfig(24, 5, 96, 24, True, "HS", 1, 1, 1.0),
        InvertedResidualConfig(24, 5, 96, 40, True, "HS", 2, 1, 1.0),
    ]
    return awake(lambda: vision.MobileNetV3(settings, 64, num_classes=CLASSES), (3, 64, 64))


def efficientnet() -> nn.Module:
    """torchvision's, with fewer blocks."""
    blocks = [MBConvConfig(1, 3, 1, 16, 16, 1), MBConvConfig(4, 3, 2, 16, 24, 2), MBConvConfig(4, 5, 2, 24, 40, 1)]
    return awake(lambda: vision.EfficientNet(blocks, dropout=0.2, num_classes=CLASSES))


def googlenet() -> nn.Module:
    """With its auxiliary classifiers, which are for training."""
    return awake(lambda: vision.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False), (3, 64, 64))


def inception() -> nn.Module:
    """With its auxiliary classifier and its own way of normalising."""
    make = partial(vision.inception_v3, num_classes=CLASSES, aux_logits=True, transform_input=True, init_weights=False)
    return awake(make, (3, 80, 80))


def squeezenet() -> nn.Module:
    return awake(lambda: vision.squeezenet1_1(num_classes=CLASSES), (3, 64, 64))


def vision_transformer() -> nn.Module:
    sizes = {"image_size": EDGE, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return awake(lambda: vision.VisionTransformer(**sizes, num_classes=CLASSES))


def swin() -> nn.Module:
    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": [4, 4]}
    return awake(lambda: vision.SwinTransformer(**sizes, num_classes=CLASSES))


def detector() -> nn.Module:
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()


def segmenter() -> nn.Module:
    return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()


# --- transformers ----------------------------------------------------------------------------------------------------

_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def hf_vit() -> nn.Module:
    config = hf.ViTConfig(**_SMALL, image_size=EDGE, patch_size=8, num_labels=CLASSES)
    return awake(lambda: hf.ViTForImageClassification(config))


def hf_dinov2() -> nn.Module:
    config = hf.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=EDGE, patch_size=8, num_labels=CLASSES
    )
    return awake(lambda: hf.Dinov2ForImageClassification(config))


def hf_convnext() -> nn.Module:
    config = hf.ConvNextConfig(hidden_sizes=[8, 16, 32], depths=[1, 2, 1], num_stages=3, num_labels=CLASSES)
    return awake(lambda: hf.ConvNextForImageClassification(config))


def hf_swin() -> nn.Module:
    config = hf.SwinConfig(
        image_size=EDGE, patch_size=2, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4, num_labels=CLASSES
    )
    return awake(lambda: hf.SwinForImageClassification(config))


def hf_text() -> nn.Module:
    return hf.BertForSequenceClassification(hf.BertConfig(**_SMALL, vocab_size=100)).eval()


def hf_segmenter() -> nn.Module:
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2], "decoder_hidden_size": 16}
    blocks = {"num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "mlp_ratios": [2, 2]}
    return hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**sizes, **blocks, strides=[4, 2])).eval()


def hf_multi_label() -> nn.Module:
    sizes = {**_SMALL, "image_size": EDGE, "patch_size": 8, "num_labels": CLASSES}
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, problem_type="multi_label_classification")).eval()


# --- written by hand -------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    """A plain network, such as a course has one write; subclasses and ``end`` change one thing."""

    def __init__(self, channels: int = 3, classes: int = CLASSES, end: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))
        self.fc, self.end = nn.Linear(8, classes), end

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Any:
        return self.end(self.fc(self.features(x).mean((2, 3))))


def plain() -> nn.Module:
    return awake(Net)


def spectrogram() -> nn.Module:
    """Of a sound: one channel, 64 bands, 101 frames."""
    return awake(lambda: Net(channels=1), (1, 64, 101))


def four_channels() -> nn.Module:
    return awake(lambda: Net(channels=4), (4, EDGE, EDGE))


def squeezed() -> nn.Module:
    return awake(lambda: Net(end=lambda y: y[:, :, None, None].squeeze()))


def with_features() -> nn.Module:
    return awake(lambda: Net(end=lambda y: {"features": y * 2, "logits": y}))


class Centred(Net):
    """Changes the batch that it is given."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.sub_(x.mean((2, 3), keepdim=True)))


def changes_its_input() -> nn.Module:
    return awake(Centred)


class Reinforced(Net):
    """Looks at the picture again further on."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(3, 8, 1)

    def features(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for number, block in enumerate(self.blocks):
            y = block(y) + (self.again(x) if number == 2 else 0)
        return y


def reads_again() -> nn.Module:
    return awake(Reinforced)


class SequenceFirst(nn.Module):
    """torch's own transformer as it is by default: (length, batch, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, stride=8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 4, enable_nested_tensor=False)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0))


class Recurrent(nn.Module):
    """Convolutions that a recurrent network reads column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, 8, 4, stride=4), nn.Sequential(*(Block(8) for _ in range(3)))
        self.rnn, self.fc = nn.GRU(64, 16, batch_first=True, bidirectional=True), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.blocks(self.stem(x)).flatten(1, 2).transpose(1, 2)
        return self.fc(self.rnn(columns)[0].mean(1))


def recurrent() -> nn.Module:
    return awake(Recurrent, (1, EDGE, 64))


def sequence_first() -> nn.Module:
    return awake(SequenceFirst)


class MixedPrecision(Net):
    @torch.autocast("cuda")
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


def mixed_precision() -> nn.Module:
    return awake(MixedPrecision)


# --- as a training script leaves them --------------------------------------------------------------------------------


def half_precision() -> nn.Module:
    return plain().half()


def brain_float() -> nn.Module:
    return plain().bfloat16()


def parallel() -> nn.Module:
    return nn.DataParallel(plain())


def compiled() -> Any:
    return torch.compile(plain(), backend="eager")


def averaged() -> nn.Module:
    return AveragedModel(plain())


def ema() -> nn.Module:
    return ModelEmaV3(plain())


def pruned() -> nn.Module:
    net = plain()
    prune.l1_unstructured(net.blocks[1].conv, "weight", 0.5)
    net(torch.zeros(1, 3, EDGE, EDGE))
    return net


def weight_normed() -> nn.Module:
    net = plain()
    parametrizations.weight_norm(net.blocks[0].conv)
    nn.utils.spectral_norm(net.blocks[2].conv)
    return net.eval()


# --- what cannot be made early-exit ----------------------------------------------------------------------------------


def lazy() -> nn.Module:
    net = Net()
    net.fc = nn.LazyLinear(CLASSES)
    return net.eval()


def scripted() -> Any:
    return torch.jit.trace(plain(), torch.zeros(2, 3, EDGE, EDGE))


def dropout_always_on() -> nn.Module:
    return awake(lambda: Net(end=lambda y: F.dropout(y, 0.1)))


class TwoInputs(Net):
    def forward(self, x: Tensor, age: Tensor) -> Any:
        return super().forward(x) + age


def two_inputs() -> nn.Module:
    return TwoInputs().eval()


def statistics_of_the_batch() -> nn.Module:
    net = awake(Net)
    net.blocks[1].norm = nn.BatchNorm2d(8, track_running_stats=False)
    return net


def unet() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 2, 1)]
    return nn.Sequential(*layers).eval()


def one_logit() -> nn.Module:
    return awake(lambda: Net(classes=1))


def multi_label() -> nn.Module:
    return awake(lambda: Net(end=torch.sigmoid))


def regression() -> nn.Module:
    return awake(lambda: Net(classes=1, end=lambda y: y.squeeze(1)))


def embedding() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=0).eval()


def another_size() -> nn.Module:
    return awake(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, CLASSES)))


class Branching(Net):
    """Chooses by the picture what it computes, in a way that ``torch.export`` can capture."""

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return torch.cond(x.mean() > 0, lambda y: y * 2.0, lambda y: y - 1.0, (x,))


def branching() -> nn.Module:
    return awake(Branching)


def deformable() -> nn.Module:
    """Its second block moves where it looks."""
    net = awake(Net)

    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.conv = nn.Conv2d(8, 18, 3, padding=1), DeformConv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, self.offset(x))

    net.blocks[1] = Deformable()
    return net


def double_precision() -> nn.Module:
    """A filter in the middle in float64, which onnxruntime has no convolution for."""
    net = awake(Net)

    class Filter(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kernel = torch.ones(8, 1, 3, 3, dtype=torch.float64) / 9
            return F.conv2d(x.double(), kernel, padding=1, groups=8).float()

    net.blocks[1] = Filter()
    return net


def exact_median() -> nn.Module:
    return awake(lambda: Net(end=lambda y: y - y.median(dim=1, keepdim=True).values))
