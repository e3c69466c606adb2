"""What programs write as an adapter of gpt-oss: understood, or refused by name with a way out.

``kinds`` knows PEFT's kinds, starts and options; ``single_experts`` factors of one expert each;
``low_rank`` what factors do to a weight.
"""
