"""The importance matrix is the mean square of each layer's inputs, by the names of the file."""

from pathlib import Path

import torch

from tests.worker.exports import families
from worker.exports import verification
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.importance import measure
from worker.exports.merged.merge import read_shape

ROWS = [[1, 260, 262, 270], [1, 300]]


def test_importance_is_the_mean_square_of_a_layers_inputs(tmp_path: Path) -> None:
    folder = families.make_family("llama", tmp_path / "model", families.byte_level_tokenizer())
    model = verification.load_safetensors(folder, torch.float32)

    found = measure(model, ROWS, GgufLayout.of(read_shape(folder).config))

    with torch.inference_mode():
        inputs = [
            model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor(row))) for row in ROWS
        ]
    expected = torch.cat(inputs).square().mean(0)
    torch.testing.assert_close(torch.from_numpy(found.weights["blk.0.attn_q.weight"]), expected)
    assert (found.rows, found.tokens) == (2, 6)
    assert "output.weight" not in found.weights
    assert len(found.weights) == 7 * 2


def test_every_family_has_a_name_for_each_layer_that_is_measured(tmp_path: Path) -> None:
    tokenizer = families.byte_level_tokenizer()
    for family in ("qwen3", "gemma2", "gemma3", "phi3"):
        folder = families.make_family(family, tmp_path / family, tokenizer)
        model = verification.load_safetensors(folder, torch.float32)

        found = measure(model, ROWS[:1], GgufLayout.of(read_shape(folder).config))

        assert len(found.weights) == (4 if family == "phi3" else 7) * 2
