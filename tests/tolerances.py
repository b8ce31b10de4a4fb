"""Every tolerance of the comparisons with an oracle, each with its reason.

Owns numbers only. A bound that follows from the arithmetic at hand (so many roundings of so many
terms) belongs beside that arithmetic, not here.
"""

PARITY = 1e-9
"""Largest difference of float64 logits of standard deviation 1 from transformers' in float64.

Two orders of summation through eight layers leave 1e-13 to 1e-11; a float32 that is left
anywhere leaves 1e-7.
"""

MUTANT = 1e-6
"""Least difference that a wrong-on-purpose variant must make, a thousand times :data:`PARITY`.

The weakest of the known mistakes, the l2 norm's constant on the mean, makes 1e-4 (SPEC 5.2).
"""

NEAR_TIE = 1e-3
"""Gap in float32 logits, of tokens or of the router, under which either choice is right.

Float32 rounding alone moves these logits by up to 2e-3 in a random model (SPEC 0), by some 1e-5
in a trained one (:data:`FLOAT32_LOGITS`).
"""

FLOAT32_LOGITS = 1e-3
"""Largest difference of a trained model's float32 logits between two orders of summation.

Seen: 1.3e-4 for SmolLM2 (30 layers, logits up to 40), 2e-5 for austen-moe. A mistake makes whole
units. Holds only where both routers chose the same experts.
"""

AFFINE_PRODUCT = 1e-5
"""Largest error of a product with affine weights, relative to ``sum_i |x_i w_i|``.

The instruction sets' kernels sum ``q x`` and ``x`` apart, and hold activations as 23-bit fixed
point (native/kernels.h): groups that cancel and outliers bring it near, typical ones stay at 1e-6.
"""
PROMPT_LOGITS = 2e-2
"""The same of a prompt in one piece, whose products take activations of 16 bits (:data:`PANEL`).

Seen: 7.3e-3 for SmolLM2, whose logits go up to 40. The answers are the same tokens.
"""

PANEL = 1e-4
"""Error of products of many rows, relative to the largest result, two in a row included.

Activations are 16-bit fixed point of each group's largest (native/panels.h names the exact bound):
half a step is 1.5e-5 of that. Seen: 2e-5.
"""

NORM = 1e-6
"""Error of a native norm, routing weight or combination, relative to the largest result.

Sums of up to some thousand float32 terms in vectors of 4 to 16, and an exp within 3 * 2^-24.
"""

MIXER = 2e-5
"""Error of a native mixer step in float32 against float64, relative to the largest result.

Norms, exponentials and sums over a state of up to 128 rows or some hundred keys, one after
another. Seen: 2e-6. A mistake makes parts of one.
"""

STEP_FORM = 1e-9
"""Largest difference of a delta net's chunked form from its steps, float64, results of size 1.

The two forms sum in different orders; over 200 tokens that leaves 1e-13.
"""

HALF = 2.0**-8
"""Largest relative error of a number rounded to bfloat16: it keeps 8 bits. Float16 keeps 11."""

CODE = 1.01 / 254
"""Largest error of a number held in 8 bits, relative to the largest of its row: half a code, and
float32 rounding."""
