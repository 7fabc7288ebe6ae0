"""Vision Transformer (Dosovitskiy et al., 2021) from timm, with the settings and initialisation of its JAX original."""

from functools import partial

from timm.layers.weight_init import lecun_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from rst.models.common import check_data


def vision_transformer(
    width: int,
    depth: int,
    heads: int,
    patch_size: int,
    dropout: float,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
) -> VisionTransformer:
    """Build a pre-norm ViT that classifies from the class token of square images, `image_size` pixels a side.

    `dropout` acts after the position embedding, on the attention weights, after the attention and twice in each MLP;
    the head has none.
    """
    check_data(num_classes, in_channels)
    if image_size % patch_size:
        raise ValueError(
            f"model: a ViT with model.patch_size={patch_size} cannot tile dataset.image_size={image_size}: take a "
            f"patch size that divides it."
        )
    if width % heads:
        raise ValueError(f"model.width={width} of a ViT must be a multiple of model.heads={heads}.")
    model = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_channels,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        attn_drop_rate=dropout,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        act_layer="gelu_tanh",
        weight_init="skip",
    )
    _initialise(model)
    return model


def _initialise(model: VisionTransformer) -> None:
    """Position embedding N(0, 0.02²), xavier kernels, MLP biases N(0, 1e-6²), the head and everything else zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            lecun_normal_(module.weight)
            nn.init.zeros_(module.get_parameter("bias"))
        elif isinstance(module, nn.Linear):
            # Query, key and value are three matrices to xavier; timm fuses them for speed.
            for kernel in module.weight.chunk(3) if name.endswith("qkv") else [module.weight]:
                nn.init.xavier_uniform_(kernel)
            nn.init.normal_(module.bias, std=1e-6 if ".mlp." in name else 0)
    nn.init.normal_(model.get_parameter("pos_embed"), std=0.02)
    nn.init.zeros_(model.get_parameter("cls_token"))
    nn.init.zeros_(model.get_parameter("head.weight"))
