"""LoRA linear layers as one autograd function, and how they are put into a PeftModel."""
