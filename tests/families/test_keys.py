"""Names in kohya's files, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdbuild.families import load
from sdbuild.families.contract import Component
from sdbuild.families.sd1 import KEYS


@pytest.mark.parametrize(
    ("component", "path", "name"),
    [
        (
            "unet",
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
            "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q",
        ),
        (
            "unet",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
        ),
        (
            "unet",
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj",
            "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
        ),
        ("unet", "up_blocks.1.attentions.0.proj_in", "lora_unet_up_blocks_1_attentions_0_proj_in"),
        ("unet", "down_blocks.1.resnets.0.conv_shortcut", "lora_unet_down_blocks_1_resnets_0_conv_shortcut"),
        ("unet", "down_blocks.1.resnets.0.time_emb_proj", "lora_unet_down_blocks_1_resnets_0_time_emb_proj"),
        ("unet", "down_blocks.0.downsamplers.0.conv", "lora_unet_down_blocks_0_downsamplers_0_conv"),
        ("unet", "time_embedding.linear_1", "lora_unet_time_embedding_linear_1"),
        ("unet", "conv_in", "lora_unet_conv_in"),
        (
            "text_encoder",
            "text_model.encoder.layers.11.self_attn.q_proj",
            "lora_te_text_model_encoder_layers_11_self_attn_q_proj",
        ),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
    ],
)
def test_names_are_kohyas(component: Component, path: str, name: str) -> None:
    assert KEYS.kohya(component, path) == name
    assert KEYS.path(name) == (component, path)


def test_text_paths_without_their_root_get_it() -> None:
    name = KEYS.kohya("text_encoder", "encoder.layers.0.mlp.fc2")
    assert name == "lora_te_text_model_encoder_layers_0_mlp_fc2"
    assert KEYS.path(name) == ("text_encoder", "text_model.encoder.layers.0.mlp.fc2")


def adaptable(module: nn.Module) -> list[str]:
    return [path for path, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]


def test_every_layer_of_a_base_goes_there_and_back(base: Path) -> None:
    for path in adaptable(load(base).load_denoiser().module):
        assert KEYS.path(KEYS.kohya("unet", path)) == ("unet", path)
    for path in adaptable(load(base).load_text().modules["text_encoder"]):
        assert KEYS.path(KEYS.kohya("text_encoder", path)) == ("text_encoder", f"text_model.{path}")


def test_every_layer_of_stable_diffusion_1_goes_there_and_back() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    paths = adaptable(unet)
    assert len(paths) > 250
    assert all(KEYS.path(KEYS.kohya("unet", path)) == ("unet", path) for path in paths)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_te2_text_model_encoder", "begins with none of lora_unet, lora_te"),
        ("lora_unet_double_blocks_0_img", "double_blocks_0_img is no part of this family"),
        ("lora_unet_conv_inner", "inner is no part"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KEYS.path(name)


MODULES = (
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.mid_block.resnets.0.conv1",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
)


def lora() -> dict[str, torch.Tensor]:
    shapes = {"lora_A": (2, 8), "lora_B": (8, 2)}
    return {
        f"{module}.{part}.weight": torch.full(shape, float(index))
        for index, module in enumerate(MODULES)
        for part, shape in shapes.items()
    }


def test_a_lora_goes_to_kohya_and_back() -> None:
    alphas = {module: float(index + 1) for index, module in enumerate(MODULES)}
    kohya = KEYS.to_kohya(lora(), alphas)
    assert len(kohya) == 9
    assert kohya["lora_unet_mid_block_resnets_0_conv1.alpha"] == 2
    assert kohya["lora_unet_mid_block_resnets_0_conv1.alpha"].shape == ()
    assert kohya["lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"].shape == (2, 8)
    state, back = KEYS.from_kohya(kohya)
    assert back == alphas
    assert state.keys() == lora().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in lora().items())


def test_one_alpha_is_for_all_and_the_rank_where_there_is_none() -> None:
    kohya = KEYS.to_kohya(lora(), 4)
    assert {float(tensor) for key, tensor in kohya.items() if key.endswith(".alpha")} == {4}
    bare = {key: tensor for key, tensor in kohya.items() if not key.endswith(".alpha")}
    assert KEYS.from_kohya(bare)[1] == dict.fromkeys(MODULES, 2)


def test_what_is_no_lora_is_refused() -> None:
    with pytest.raises(ValueError, match="is no part of a LoRA"):
        KEYS.to_kohya({"unet.conv_in.weight": torch.zeros(1)}, 1)
    with pytest.raises(ValueError, match="begins with none of unet, text_encoder"):
        KEYS.to_kohya({"vae.conv_in.lora_A.weight": torch.zeros(1)}, 1)
    with pytest.raises(ValueError, match="is no part of a LoRA"):
        KEYS.from_kohya({"lora_unet_conv_in.hada_w1_a": torch.zeros(1)})
