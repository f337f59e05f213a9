"""A model's folder without weights: configuration, tokenizer and chat template, for the mocker.

Run by the Python of Dynamo's environment: tiny_model.py FOLDER
"""

import argparse
import inspect
import json
import sys
import tarfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# The mocker answers with token ids between 1000 and 2000.
VOCABULARY = 2048
SPECIAL = ["<unk>", "<s>", "</s>"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def main(folder: Path) -> None:
    """Train a small tokenizer on modules of the standard library, and write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(map(inspect.getsource, (argparse, tarfile)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True)),
            "model_max_length": 8192,
            "chat_template": TEMPLATE,
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_hidden_layers": 2,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 8192,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "bfloat16",
        },
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content))


main(Path(sys.argv[1]))
