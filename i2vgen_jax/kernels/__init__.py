"""Operations with an implementation of their own on some chips.

`on_blocks` runs plain functions of a few pixels inside the memory of a TPU
core; `frame_attention` and the factors of `group_norm` are made for it.
`dot_product_attention` needs all pixels of a frame. Each function decides by
the platform that the program is compiled for, and under `jax.set_mesh` works on
each device's part of the arrays.
"""
