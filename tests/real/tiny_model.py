"""A model small enough for any machine, as the files that an engine loads: a Llama of two layers, one token per byte.

What it says is noise; how it caches is what is tested. For that vLLM's own `--load-format dummy` is enough, with which nearly all answers
are alike; with `write_weights` each prompt has an answer of its own.
"""

import array
import json
import random

END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_letters():
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for what follows Latin-1, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


WINDOW = 64
SLIDING = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 32,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": WINDOW,
}
"""What makes it a Gemma 3: one of its two layers looks back 64 tokens."""


def make(directory, **changes):
    """Write the files. `changes`: of the configuration."""
    letters = byte_letters()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 256,
                "content": END,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {letter: byte for byte, letter in enumerate(letters)} | {END: 256},
            "merges": [],
        },
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 257,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 256,
        "eos_token_id": 256,
    } | changes
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "bos_token": END,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
        ("config.json", config),
    ):
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def write_weights(directory, seed=1):
    """Random weights beside the files of `make`, as safetensors, such that an answer depends on all of its prompt."""
    rng = random.Random(seed)
    shapes = {"model.embed_tokens.weight": (257, 64, 1.0), "lm_head.weight": (257, 64, 1.0), "model.norm.weight": (64,)}
    for layer in range(2):
        block = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{name}.weight"] = (64,)
        for name, rows, columns, deviation in (
            ("self_attn.q_proj", 64, 64, 0.3),  # large, so that attention looks at few tokens and not at their mean
            ("self_attn.k_proj", 32, 64, 0.3),
            ("self_attn.v_proj", 32, 64, 0.3),
            ("self_attn.o_proj", 64, 64, 0.3),
            ("mlp.gate_proj", 128, 64, 0.1),
            ("mlp.up_proj", 128, 64, 0.1),
            ("mlp.down_proj", 64, 128, 0.1),
        ):
            shapes[f"{block}{name}.weight"] = (rows, columns, deviation)
    header, values = {}, array.array("f")
    for name, (*shape, last) in shapes.items():
        begin = len(values) * 4
        if shape:
            values.extend(rng.gauss(0.0, last) for _ in range(shape[0] * shape[1]))
        else:
            shape, values = [last], values + array.array("f", [1.0] * last)  # noqa: PLW2901
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(values) * 4]}
    head = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + values.tobytes())
