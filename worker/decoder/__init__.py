"""A decoder like Llama's, written down once: its layer, that layer's gradients, and their parts."""
