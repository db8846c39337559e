"""Layers that read the same input are grouped by their names."""

from worker.models.linear_groups import group_by_input


def test_layers_of_one_parent_that_read_the_same_input_are_grouped_in_the_order_of_their_calls() -> None:
    paths = ["0.attn.k_proj", "0.attn.q_proj", "0.attn.o_proj", "0.attn.v_proj", "0.mlp.up_proj"]

    assert group_by_input([*paths, "1.attn.v_proj", "0.mlp.gate_proj", "lm_head"]) == [
        ["0.attn.q_proj", "0.attn.k_proj", "0.attn.v_proj"],
        ["0.attn.o_proj"],
        ["0.mlp.gate_proj", "0.mlp.up_proj"],
        ["1.attn.v_proj"],
        ["lm_head"],
    ]


def test_layers_that_are_left_out_do_not_split_a_group() -> None:
    assert group_by_input(["q_proj", "v_proj"]) == [["q_proj", "v_proj"]]
