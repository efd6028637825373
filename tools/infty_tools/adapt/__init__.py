"""`infty adapt`: a pretrained Hugging Face model becomes a checkpoint that infty trains on."""
