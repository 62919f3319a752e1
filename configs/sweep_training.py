"""A grid of learning rates and ranks for a LoRA of the bundled base stage.

    i2vgen data build procedural --output data --num-clips 200
    i2vgen sweep configs/sweep_training.py --workdir sweeps/training \\
        --metric loss -- train --config=configs/i2vgen_xl.py:tiny_lora
"""

import itertools


def sweep():
  for rate, rank in itertools.product((1e-3, 2e-3, 4e-3), (4, 8)):
    yield {"train.learning_rate": rate, "lora.rank": rank, "lora.alpha": rank}
