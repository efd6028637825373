"""What several tests share: small models, datasets and runs, and machines to run them on."""
