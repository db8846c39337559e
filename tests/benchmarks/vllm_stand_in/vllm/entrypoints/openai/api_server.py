"""As vLLM's server: its options, and its routes by the tests' stand-in. Refuses options that vLLM has not."""

import argparse
import signal
from pathlib import Path

from tests.worker.inference.vllm.stand_in import VllmStandIn


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "dtype", "host", "served-model-name", "quantization"):
        parser.add_argument(f"--{name}")
    for name in ("port", "max-model-len", "max-loras", "max-lora-rank"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--lora-modules", nargs="+", default=[])
    options = parser.parse_args()
    stand_in = VllmStandIn(options.served_model_name, port=options.port)
    stand_in.answers[options.served_model_name] = [7] * options.max_model_len
    for module in options.lora_modules:
        assert options.enable_lora
        name, _, folder = module.partition("=")
        assert (Path(folder) / "adapter_config.json").is_file()
        stand_in.adapters[name] = folder
    signal.pause()


if __name__ == "__main__":
    main()
