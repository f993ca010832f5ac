"""Image classifiers of Hugging Face's transformers: small, with random weights, giving logits."""

from torch import Tensor, nn

ONE_EACH = {"depths": [1, 1, 1, 1]}
NARROW = {"hidden_sizes": [16, 24, 32, 48], **ONE_EACH}
HEADS = {"hidden_sizes": [16, 32, 32, 48], "num_attention_heads": [1, 2, 2, 4], **ONE_EACH}
SETTINGS: dict[str, dict] = {
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], **ONE_EACH},
    "RegNet": {
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 32, 64],
        "groups_width": 8,
        **ONE_EACH,
    },
    "Bit": {"embedding_size": 32, "hidden_sizes": [128] * 4, **ONE_EACH},
    "HGNetV2": {},
    "EfficientNet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "ConvNext": {**NARROW, "drop_path_rate": 0.1},
    "ConvNextV2": NARROW,
    "PoolFormer": NARROW,
    "Van": NARROW,
    "FocalNet": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "MobileViT": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
    },
    "MobileViTV2": {"image_size": 64, "width_multiplier": 0.25},
    "SwiftFormer": {},
    "Levit": {},
    "Segformer": HEADS,
    "PvtV2": {"image_size": 64, **HEADS},
    "Swin": {
        "image_size": 64,
        "embed_dim": 24,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "ViT": {
        "image_size": 64,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    },
}


class Logits(nn.Module):
    """One tensor, where the model gives a table of them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def make(name: str, num_classes: int) -> Logits:
    import transformers  # takes seconds

    config = getattr(transformers, f"{name}Config")(**SETTINGS[name], num_labels=num_classes)
    return Logits(getattr(transformers, f"{name}ForImageClassification")(config))
