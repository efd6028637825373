"""The numbers that an exported model's weights can be stored in."""

DTYPES = ("float32", "bfloat16", "float16")
