"""Vision Transformer (Dosovitskiy et al., 2021) of timm, with the settings and initial weights of its JAX original."""

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

# timm takes more than a second to import, so a function imports it when it builds a network.
if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def vision_transformer(
    width: int,
    depth: int,
    heads: int,
    patch_size: int,
    dropout: float,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
) -> "VisionTransformer":
    """Build a pre-norm ViT that classifies by its class token. Maps images [N, in_channels, H, H] to [N, num_classes].

    Args:
        width: length of a token, a multiple of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        patch_size: side of a patch in pixels.
        dropout: probability of dropout, from 0 to 1: after the position embedding, on the attention weights, after the
            attention and twice in each MLP. The head has none.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: side H of the images in pixels, a multiple of ``patch_size``.

    Raises:
        ValueError: a size is not the multiple that it must be.
    """
    from timm.models.vision_transformer import VisionTransformer

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


def _initialise(model: "VisionTransformer") -> None:
    """Draw the weights as the JAX original does, from torch's global generator.

    The patch embedding is LeCun-normal, the position embedding N(0, 0.02²), the dense kernels are Xavier-uniform and
    the biases of the MLPs N(0, 1e-6²). The head, the class token and the other biases are zero.
    """
    from timm.layers.weight_init import lecun_normal_

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            lecun_normal_(module.weight)
            nn.init.zeros_(module.get_parameter("bias"))
        elif isinstance(module, nn.Linear):
            # timm fuses query, key and value, but Xavier's bound is that of each matrix of its own.
            for kernel in module.weight.chunk(3) if name.endswith("qkv") else [module.weight]:
                nn.init.xavier_uniform_(kernel)
            nn.init.normal_(module.bias, std=1e-6 if ".mlp." in name else 0)
    nn.init.normal_(model.get_parameter("pos_embed"), std=0.02)
    nn.init.zeros_(model.get_parameter("cls_token"))
    nn.init.zeros_(model.get_parameter("head.weight"))
