"""Public architectures in tiny configurations, built offline: name -> how to make one, and what to call it with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .zoo_builders import (
    SMALL,
    SWIN,
    LanguageModel,
    Tagger,
    diffusers,
    encoder,
    gated_mlp,
    image,
    latents,
    pixels,
    residual,
    speech,
    standardized_resnet,
    swin_v2,
    time_series,
    timm,
    tokens,
    torchvision,
    transformers,
    unet,
    video_residual,
    words,
)
from .zoo_case import Architecture
from .zoo_papers import (
    AngularMargin,
    Capsules,
    GraphAttention,
    LowRank,
    StyleGenerator,
    autoregressive,
    big_transfer,
    pixel_cnn,
    spline_network,
)
from .zoo_science import ComplexFourierOperator, Detector, FourierOperator, OdeNet, SparseExperts

_MAXVIT: dict[str, Any] = {
    "partition_size": 2, "block_channels": [8, 16], "block_layers": [1, 1], "head_dim": 4, "stochastic_depth_prob": 0.0,
}  # fmt: skip
_SMALL_VIT: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2}
_VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8}
_TOWERS: dict[str, Any] = {"text_config": SMALL | {"projection_size": 16}, "vision_config": SMALL | _VISION}
_T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
_SIDES = {
    f"{side}_{what}": count
    for side in ("encoder", "decoder")
    for what, count in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
}
_SEQUENCES: dict[str, Any] = {"d_model": 16, "decoder_start_token_id": 2, **_SIDES}
_SPEECH: dict[str, Any] = {
    "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
}  # fmt: skip
_CODEC: dict[str, Any] = {
    "num_filters": 2, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 8, "upsampling_ratios": [2, 2],
    "num_lstm_layers": 1, "sampling_rate": 24000, "target_bandwidths": [24.0],
}  # fmt: skip
_CROSS: dict[str, Any] = {
    "cross_attention_dim": 8, "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
_AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (8, 16), "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
_DIT: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "sample_size": 8}
_SD3: dict[str, Any] = {
    **_DIT, "num_layers": 2, "joint_attention_dim": 8, "caption_projection_dim": 16, "pooled_projection_dim": 8,
    "out_channels": 4, "pos_embed_max_size": 8,
}  # fmt: skip

OF_TORCH = {
    "nn.Transformer": (lambda: nn.Transformer(16, 2, 1, 1, 32), lambda: (torch.randn(5, 2, 16), torch.randn(4, 2, 16))),
    "nn.TransformerEncoder": (encoder, lambda: (torch.randn(2, 5, 16),)),
    "LSTM language model": (LanguageModel, lambda: (torch.randint(60, (8, 2)),)),
    "LSTM language model, tied": (lambda: LanguageModel(tied=True), lambda: (torch.randint(60, (8, 2)),)),
    "GRU tagger": (Tagger, lambda: (torch.randint(60, (2, 8)), torch.tensor([8, 5]))),
}
OF_TORCHVISION = {
    "ResNet": (residual, image()),
    "SqueezeNet": (torchvision("squeezenet1_1", num_classes=7), image()),
    "DenseNet": (torchvision("DenseNet", growth_rate=4, block_config=(2, 2), num_init_features=8), image()),
    "MobileNetV2": (torchvision("mobilenet_v2", width_mult=0.25, num_classes=7), image()),
    "MobileNetV3": (torchvision("mobilenet_v3_small", width_mult=0.25, num_classes=7), image()),
    "ShuffleNetV2": (
        torchvision("ShuffleNetV2", stages_repeats=[1, 1, 1], stages_out_channels=[8, 16, 32, 64, 64]),
        image(),
    ),
    "ViT": (
        torchvision("VisionTransformer", **_VISION, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32),
        image(),
    ),
    "Swin": (torchvision("SwinTransformer", **SWIN), image(16)),
    "Swin V2": (swin_v2, image(16)),
    "3D ResNet": (video_residual, lambda: (torch.randn(2, 3, 2, 8, 8),)),
    "Swin 3D": (
        torchvision("video.SwinTransformer3d", **SWIN | {"patch_size": [1, 2, 2], "window_size": [2, 2, 2]}),
        lambda: (torch.randn(2, 3, 2, 8, 8),),
    ),
    "MaxViT": (torchvision("MaxVit", input_size=(32, 32), stem_channels=8, **_MAXVIT), image()),
}
OF_TIMM = {
    "ByobNet": (timm("test_byobnet"), image()),
    "ConvNeXt": (timm("test_convnext2"), image()),
    "ConvMixer": (timm("convmixer.ConvMixer", dim=16, depth=2), image()),
    "EfficientNet": (timm("test_efficientnet"), image()),
    "NFNet": (timm("test_nfnet"), image()),
    "MambaOut": (timm("test_mambaout"), image()),
    "MLP-Mixer": (timm("mlp_mixer.MlpMixer", img_size=32, embed_dim=16, num_blocks=2), image()),
    "gMLP": (gated_mlp, image()),
    "BEiT": (timm("beit_base_patch16_224", img_size=32, **_SMALL_VIT), image()),
    "CaiT": (timm("cait_xxs24_224", img_size=32, **_SMALL_VIT), image()),
    "EVA-02": (timm("eva02_tiny_patch14_224", img_size=28, **_SMALL_VIT), image(28)),
    "XCiT": (timm("xcit_nano_12_p16_224", img_size=32, **_SMALL_VIT), image()),
    "DaViT": (timm("davit_tiny", depths=(1, 1), embed_dims=(8, 16), num_heads=(1, 2), window_size=4), image()),
    "Swin V2 (timm)": (
        timm("swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(2, 2)),
        image(),
    ),
    "LeViT": (
        timm("levit_128s", img_size=64, embed_dim=(16, 16, 16), depth=(1, 1, 1), key_dim=8, num_heads=(2, 2, 2)),
        image(64),
    ),
    "ResNetV2, standardized": (standardized_resnet, image()),
    "Hiera": (timm("hiera_tiny_224", img_size=64, embed_dim=8, num_heads=1, stages=(1, 1, 1, 1)), image(64)),
    "FocalNet": (timm("focalnet.FocalNet", depths=(1, 1), embed_dim=8), image()),
    "Sequencer": (
        timm(
            "sequencer.Sequencer2d", img_size=32, layers=(1, 1), patch_sizes=(4, 2), embed_dims=(8, 16),
            hidden_sizes=(4, 4), mlp_ratios=(2.0, 2.0),
        ),
        image(),
    ),
}  # fmt: skip
OF_TRANSFORMERS = {
    "BERT": (transformers("BertForSequenceClassification"), words()),
    "ALBERT": (transformers("AlbertForMaskedLM", embedding_size=8), words()),
    "RoBERTa": (transformers("RobertaForTokenClassification"), words()),
    "ELECTRA": (transformers("ElectraForPreTraining", embedding_size=8), words()),
    "DeBERTa V2": (
        transformers("DebertaV2ForSequenceClassification", relative_attention=True, position_buckets=4),
        words(),
    ),
    "DeBERTa": (
        transformers("DebertaForSequenceClassification", relative_attention=True, pos_att_type=["c2p", "p2c"]),
        words(),
    ),
    "XLNet": (
        transformers("XLNetLMHeadModel", d_model=16, n_layer=2, n_head=2, d_inner=32, max_position_embeddings=None),
        words("input_ids", "token_type_ids"),
    ),
    "FNet": (transformers("FNetForSequenceClassification"), words()),
    "ConvBERT": (transformers("ConvBertForSequenceClassification", embedding_size=8, conv_kernel_size=3), words()),
    "BigBird": (transformers("BigBirdForSequenceClassification", attention_type="original_full"), words()),
    "ESM": (transformers("EsmForSequenceClassification"), words()),
    "GPT-2": (transformers("GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2, n_positions=16), words()),
    "GPT-NeoX": (transformers("GPTNeoXForCausalLM"), words()),
    "OPT": (transformers("OPTForCausalLM", ffn_dim=32, word_embed_proj_dim=16), words()),
    "BLOOM": (transformers("BloomForCausalLM", n_layer=2, n_head=2), words()),
    "Llama": (transformers("LlamaForCausalLM", num_key_value_heads=1), words()),
    "Gemma": (transformers("GemmaForCausalLM", num_key_value_heads=1, head_dim=8), words()),
    "Mixtral": (transformers("MixtralForCausalLM", num_key_value_heads=1, num_local_experts=3), words()),
    "Llama 4": (
        transformers(
            "Llama4ForCausalLM", num_key_value_heads=1, head_dim=8, num_local_experts=2, intermediate_size_mlp=32,
        ),
        words(),
    ),
    "DeepSeek-V3": (
        transformers(
            "DeepseekV3ForCausalLM", num_key_value_heads=2, n_routed_experts=4, n_group=1, topk_group=1,
            num_experts_per_tok=2, moe_intermediate_size=8, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8,
            qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        ),
        words(),
    ),
    "Bamba": (
        transformers(
            "BambaForCausalLM", num_key_value_heads=1, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=8,
            mamba_d_state=4, mamba_n_groups=1, mamba_chunk_size=4,
        ),
        words(),
    ),
    "Mamba": (transformers("MambaForCausalLM", state_size=4, num_hidden_layers=1), words()),
    "Jamba": (
        transformers(
            "JambaForCausalLM", num_key_value_heads=1, num_experts=2, use_mamba_kernels=False, mamba_d_state=4,
            attn_layer_period=2, attn_layer_offset=1,
        ),
        words(),
    ),
    "RWKV": (transformers("RwkvForCausalLM", attention_hidden_size=16), words()),
    "T5": (transformers("T5ForConditionalGeneration", **_T5), words("input_ids", "decoder_input_ids")),
    "BART": (transformers("BartForConditionalGeneration", **_SEQUENCES), words("input_ids", "decoder_input_ids")),
    "Whisper": (
        transformers(
            "WhisperForConditionalGeneration", **_SEQUENCES, num_mel_bins=8, max_source_positions=8,
            max_target_positions=16,
        ),
        lambda: {"input_features": torch.randn(2, 8, 16), "decoder_input_ids": tokens()},
    ),
    "wav2vec2": (transformers("Wav2Vec2ForCTC", **_SPEECH), speech),
    "WavLM": (transformers("WavLMForCTC", **_SPEECH), speech),
    "Parakeet": (
        transformers(
            "ParakeetForCTC",
            encoder_config={**SMALL, "num_hidden_layers": 1, "num_mel_bins": 16, "subsampling_conv_channels": 8},
        ),
        lambda: {"input_features": torch.randn(2, 32, 16)},
    ),
    "EnCodec": (transformers("EncodecModel", **_CODEC), lambda: {"input_values": torch.randn(2, 1, 64)}),
    "DINOv2": (transformers("Dinov2ForImageClassification", **_VISION), pixels()),
    "CLIP": (transformers("CLIPModel", **_TOWERS, projection_dim=8), pixels(input_ids=tokens)),
    "SigLIP": (transformers("SiglipModel", **_TOWERS), pixels(input_ids=tokens)),
    "SegFormer": (
        transformers(
            "SegformerForSemanticSegmentation", num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1],
            hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
            decoder_hidden_size=16,
        ),
        pixels(),
    ),
    "Time series transformer": (
        transformers(
            "TimeSeriesTransformerModel", **_SEQUENCES | {"decoder_start_token_id": None}, prediction_length=3,
            context_length=4, lags_sequence=[1], num_time_features=1, input_size=1,
        ),
        time_series,
    ),
}  # fmt: skip
OF_DIFFUSERS = {
    "U-Net": (
        unet(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
             attention_head_dim=4),
        latents(),
    ),
    "U-Net, conditional": (unet("UNet2DConditionModel", **_CROSS), latents(4, encoder_hidden_states=(2, 4, 8))),
    "VAE": (diffusers("AutoencoderKL", **_AUTOENCODER), image(8)),
    "CogVideoX VAE": (
        diffusers(
            "AutoencoderKLCogVideoX", block_out_channels=(8,), down_block_types=("CogVideoXDownBlock3D",),
            up_block_types=("CogVideoXUpBlock3D",), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        ),
        lambda: (torch.randn(2, 3, 1, 8, 8),),
    ),
    "DiT": (
        diffusers("DiTTransformer2DModel", **_DIT, num_layers=1, norm_num_groups=4, num_embeds_ada_norm=10),
        latents(4, "hidden_states", class_labels=1),
    ),
    "Stable Diffusion 3": (
        diffusers("SD3Transformer2DModel", **_SD3),
        latents(4, "hidden_states", encoder_hidden_states=(2, 4, 8), pooled_projections=(2, 8)),
    ),
}  # fmt: skip
OF_PAPERS = {
    "StyleGAN2": (StyleGenerator, lambda: (torch.randn(2, 8),)),
    "Big Transfer": (big_transfer, image(8)),
    "PixelCNN": (pixel_cnn, image(8, 1)),
    "MADE": (autoregressive, lambda: (torch.randn(2, 6),)),
    "KAN": (spline_network, lambda: (torch.randn(2, 4),)),
    "GAT": (lambda: GraphAttention(5, 4), lambda: (torch.randn(7, 5), torch.eye(7).roll(1, 0) + torch.eye(7))),
    "CapsNet": (Capsules, image(12, 1)),
    "ArcFace": (AngularMargin, lambda: (torch.randn(2, 6),)),
    "Low rank": (LowRank, lambda: (torch.randn(2, 6),)),
    "Fourier operator": (FourierOperator, lambda: (torch.randn(2, 1, 16),)),
    "Complex Fourier operator": (ComplexFourierOperator, lambda: (torch.randn(2, 1, 8, 8),)),
    "ODE net": (OdeNet, lambda: (torch.randn(2, 3),)),
    "Sparse experts": (SparseExperts, lambda: (torch.randn(2, 12, 6),)),
    "Detector": (Detector, lambda: ([torch.randn(3, 16, 12), torch.randn(3, 12, 16)],)),
}
_TABLES: dict[str, dict[str, Any]] = {
    "torch": OF_TORCH, "torchvision": OF_TORCHVISION, "timm": OF_TIMM, "transformers": OF_TRANSFORMERS,
    "diffusers": OF_DIFFUSERS, "papers": OF_PAPERS,
}  # fmt: skip
ZOO = {name: Architecture(library, *row) for library, table in _TABLES.items() for name, row in table.items()}
