"""Tiny models that describe pictures, made at random: one of BLIP's kind, one that chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_blip(folder: Path) -> None:
    """Write a model that goes on from a beginning."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "cat", "dog", "red", "of", "picture"]
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(
            BlipConfig(
                text_config={**size, **ends, "vocab_size": len(words), "encoder_hidden_size": 16, "projection_dim": 16},
                vision_config={**size, "image_size": 32, "patch_size": 16, "projection_dim": 16},
                projection_dim=16,
                image_text_hidden_size=16,
            )
        )
    model.save_pretrained(folder)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "bos_token": "[DEC]"}
    tokenizer = _tokenizer(words, "[UNK]", pad_token="[PAD]", **names)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def make_chat(folder: Path) -> None:
    """Write a vision model that chats: LLaVA's kind."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:", "a", "cat", "dog", "red", "of"]
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(
                    **size, num_hidden_layers=2, image_size=32, patch_size=16, projection_dim=16
                ),
                text_config=LlamaConfig(
                    **size, **ends, num_hidden_layers=1, vocab_size=len(words), max_position_embeddings=512
                ),
                image_token_index=4,
            )
        )
    model.save_pretrained(folder)
    template = (
        "{% for message in messages %}USER: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    marks: Any = {"additional_special_tokens": ["<image>"]}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=_tokenizer(words, "<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", **marks),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)


def _tokenizer(words: list[str], unknown: str, **names: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, **names)
