"""Sizes of the models whose layers are measured."""

# (out_features, in_features) of the distinct linears of a decoder layer
LINEARS = {
    "8b": [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)],
    "1b": [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)],
    "tiny": [(48, 64)],
}

# what a transformers.LlamaConfig takes, without the number of layers
WIDTHS = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}

# the rest of a whole model's config
DEPTHS = {
    "8b": {"num_hidden_layers": 32, "vocab_size": 128256, "tie_word_embeddings": False},
    "1b": {"num_hidden_layers": 16, "vocab_size": 128256, "tie_word_embeddings": True},
    "tiny": {"num_hidden_layers": 2, "vocab_size": 128, "tie_word_embeddings": True},
}
